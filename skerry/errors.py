"""Everything that can go wrong on purpose, as one tree.

A message says what was expected, what came, and what to do. The core raises; a shell (command line, updater, worker)
decides. ``main`` prints a `SkerryError` as one line and leaves with its ``exit_code``; anything else is a bug and keeps
its traceback.

    SkerryError
    ├── UsageError              the caller's request does not fit: a wrong path, option or value
    │   └── ConfigError         a recipe or configuration file; the message names the key
    ├── FormatError             bytes that are not what their name promises: garbled, truncated, too new
    ├── BundleError             a bundle that must not be used
    │   ├── ArchiveError        not the canonical archive: a header, the padding or the order is off
    │   ├── UnsafePath          a path that leaves the bundle, or is not plain
    │   ├── LinkRefused         a symbolic link, device or other thing that is not a plain file
    │   ├── TooLarge            larger than it says or than any bundle may be
    │   ├── NotSigned           no signature
    │   ├── KeyNotTrusted       signed by a key that this machine was not told to trust
    │   ├── BadSignature        the signature does not fit the signed statement
    │   ├── DigestMismatch      a file differs from what was signed
    │   ├── MissingFile         a file that was signed is not there
    │   └── ExtraFile           a file is there that was not signed
    ├── BackendError            a model that does not load or run here
    ├── SourceError             a camera, video or image that cannot be read
    ├── CompileError            a model that cannot be compiled
    │   ├── UserCodeError       the user's own code raised, or does not fit its weights
    │   ├── CalibrationError    too little or unusable calibration data
    │   ├── DatasetError        labelled samples that cannot be used
    │   ├── BudgetError         accuracy or latency past its limit, or too few samples to show that it is not
    │   ├── MachineBusy         other work kept the processors, and no time that was taken decides anything
    │   ├── PlanError           a plan that cannot be replayed: its inputs or tools are not these
    │   └── ParityError         a hop differs from the one before by more than the limits allow
    ├── StorageError            the disk refused
    │   └── StorageFull         the disk is full: says nothing about a release
    ├── SinkError               a receiver of events that does not take them
    ├── HubError                what a hub answered, or that it did not
    │   ├── HubUnreachable      no answer: network, address, or certificate
    │   ├── NotAllowed          the token or certificate does not allow this, or is not known
    │   ├── NotFound            the hub has no such thing
    │   ├── Unacceptable        the hub will never take this as it is
    │   └── Conflict            it cannot be done in the state in which things are
    ├── AgentBusy               another process holds this agent's data directory
    └── IllegalTransition       an event that the update cycle does not know in this state: a bug
"""

from __future__ import annotations


class SkerryError(Exception):
    """Root of the tree. ``exit_code`` is what the command leaves with."""

    exit_code = 1


class UsageError(SkerryError):
    """The caller's request does not fit."""

    exit_code = 2


class ConfigError(UsageError):
    """A recipe or configuration file is wrong; the message names file and key."""


class FormatError(SkerryError):
    """Bytes are not what their name promises."""


class BundleError(SkerryError):
    """A bundle that must not be used."""


class ArchiveError(BundleError):
    """The ``.skb`` file is not the canonical archive."""


class UnsafePath(BundleError):
    """A path leaves the bundle or is not plain."""


class LinkRefused(BundleError):
    """A symbolic link, device or other thing that is not a plain file."""


class TooLarge(BundleError):
    """Something is larger than it says, or than any bundle may be."""


class NotSigned(BundleError):
    """There is no signature."""


class KeyNotTrusted(BundleError):
    """The signer's key is not among the trusted ones."""


class BadSignature(BundleError):
    """The signature does not fit the signed statement."""


class DigestMismatch(BundleError):
    """A file differs from what was signed."""


class MissingFile(BundleError):
    """A file that was signed is not there."""


class ExtraFile(BundleError):
    """A file is there that was not signed."""


class BackendError(SkerryError):
    """A model does not load or run here."""


class SourceError(SkerryError):
    """A camera, video or image cannot be read."""


class CompileError(SkerryError):
    """A model cannot be compiled."""


class UserCodeError(CompileError):
    """The user's own code raised, or does not fit its weights."""


class CalibrationError(CompileError):
    """There is too little calibration data, or it cannot be used."""


class DatasetError(CompileError):
    """Labelled samples cannot be used; the message names files or classes."""


class BudgetError(CompileError):
    """Accuracy or latency is past its limit, or too few samples show that it is not."""


class MachineBusy(CompileError):
    """Other work kept the processors: times decide nothing. The same command on a quiet machine goes on."""


class PlanError(CompileError):
    """A plan cannot be replayed: its inputs or tools are not these."""


class ParityError(CompileError):
    """A hop differs from the one before by more than the limits allow."""


class StorageError(SkerryError):
    """The disk refused."""


class StorageFull(StorageError):
    """The disk is full. Says nothing about a release."""


class SinkError(SkerryError):
    """A receiver of events does not take them; ``pause_s`` is how long it asked to be left alone."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class HubError(SkerryError):
    """What a hub answered, or that it did not."""


class HubUnreachable(HubError):
    """No answer."""


class NotAllowed(HubError):
    """The token or certificate does not allow this, or is not known."""


class NotFound(HubError):
    """There is no such thing on the hub."""


class Unacceptable(HubError):
    """It will never be taken as it is."""


class Conflict(HubError):
    """It cannot be done in the state in which things are."""


class AgentBusy(SkerryError):
    """Another process holds this agent's data directory."""


class IllegalTransition(SkerryError):
    """The update cycle does not know this event in this state."""
