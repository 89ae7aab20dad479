"""Real services, started for the tests. Where one cannot be had, its tests fail and say what to install."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from root_packages import import_root_package
from spark_sessions import spark_session

import_root_package("benchmarks")

from benchmarks.reliability import servers  # noqa: E402

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Have a test fail where there is no server, and say what to install."""
    try:
        yield
    except servers.ServerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL database for tests."""
    url = os.environ.get("CONSENTIER_TEST_POSTGRESQL")
    if url:
        yield url
        return
    with _told(), servers.running_postgresql() as cluster:
        yield cluster.url


@pytest.fixture(scope="module")
def cluster() -> Iterator[servers.Cluster]:
    """A PostgreSQL server that a test may stop and start, and give roles."""
    with _told(), servers.running_postgresql() as own:
        yield own


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """The URL of a Redis database for tests."""
    url = os.environ.get("CONSENTIER_TEST_REDIS")
    if url:
        yield url
        return
    with _told(), servers.running_redis() as server:
        yield server.url


@pytest.fixture(scope="module")
def redis_server() -> Iterator[servers.RedisServer]:
    """A Redis server that a test may stop and start."""
    with _told(), servers.running_redis() as server:
        yield server


@pytest.fixture(scope="module")
def session() -> Iterator[SparkSession]:
    """Apache Spark, of the tests of one file."""
    with spark_session() as opened:
        yield opened
