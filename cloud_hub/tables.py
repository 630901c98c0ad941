"""What the hub stores. Times are integer milliseconds, UTC, by the hub's clock; documents are JSON, as they came."""

from __future__ import annotations

import sqlalchemy as sa

TABLES = sa.MetaData()

# What a rollout's step is known by: it cannot be taken twice.
rollouts = sa.Table(
    "rollouts",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("due_ms", sa.BigInteger),
    sa.Column("policy", sa.LargeBinary, nullable=False),  # cloud_hub.rollouts.judge.Policy
    sa.Column("body", sa.LargeBinary, nullable=False),  # cloud_hub.rollouts.state.Rollout
    sqlite_autoincrement=True,
)
steps = sa.Table(
    "steps",
    TABLES,
    sa.Column("rollout", sa.Integer, sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("event", sa.String, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("wave", sa.Integer, nullable=False),
    sa.Column("why", sa.String, nullable=False),
)

releases = sa.Table(
    "releases",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("signature", sa.String, nullable=False),  # its blob; the manifest's blob is the id
    sa.Column("signer", sa.String, nullable=False),
    sa.Column("pushed_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("name", "version"),
)

# A device's row holds what it is, what it should run, and what it said last; wishes go out until `seen_version` has
# caught up with `desired_version`.
devices = sa.Table(
    "devices",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("group", sa.String, nullable=False, index=True),
    sa.Column("key", sa.String, nullable=False, unique=True),  # PEM, public
    sa.Column("certificate", sa.String, nullable=False),
    sa.Column("enrolled_ms", sa.BigInteger, nullable=False),
    sa.Column("revoked_ms", sa.BigInteger),
    sa.Column("heard_ms", sa.BigInteger),
    sa.Column("online", sa.Boolean, nullable=False, default=False),
    sa.Column("birth", sa.LargeBinary),  # skerry.messages.Birth
    sa.Column("reported", sa.LargeBinary),  # skerry.messages.Reported
    sa.Column("reported_ms", sa.BigInteger),
    sa.Column("reported_boot", sa.String),
    sa.Column("reported_mono_ms", sa.BigInteger),
    sa.Column("seen_version", sa.Integer, nullable=False, default=0),
    sa.Column("desired_version", sa.Integer, nullable=False, default=0),
    sa.Column("apps", sa.LargeBinary, nullable=False, default=b"{}"),  # dict[str, skerry.wire.Wish]
    sa.Column("cleared", sa.LargeBinary, nullable=False, default=b"[]"),  # of this version
)

streams = sa.Table(
    "streams",
    TABLES,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("device", sa.String, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("last_seq", sa.BigInteger, nullable=False),
    sa.Column("lost", sa.BigInteger, nullable=False),
)
events = sa.Table(
    "events",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("stream", sa.String, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("device", sa.String, nullable=False),
    sa.Column("received_ms", sa.BigInteger, nullable=False),
    sa.Column("event", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("stream", "seq"),
    sa.Index("events_by_device", "device", "id"),
)

claims = sa.Table(
    "claims",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("secret_sha256", sa.String, nullable=False, unique=True),
    sa.Column("group", sa.String, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False),
    sa.Column("uses_left", sa.Integer, nullable=False),
)
operators = sa.Table(
    "operators",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, nullable=False, unique=True),
    sa.Column("token_sha256", sa.String, nullable=False, unique=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)
