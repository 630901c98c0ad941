"""The device's part: runs models on live video, proves each release before it switches, and comes back by itself.

Never imports torch, fastapi, sqlalchemy or a database: tests/test_isolation.py looks.
"""
