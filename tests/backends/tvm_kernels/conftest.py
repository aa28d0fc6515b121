"""Kernels built here are kept in a folder of the test run; without TileLang there is nothing to test."""

import pytest

from regraft.backends.tvm._compat import check_tilelang
from regraft.errors import MissingExtraError


@pytest.fixture(scope="session", autouse=True)
def tilelang():
    try:
        check_tilelang()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def kernel_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REGRAFT_CACHE", str(tmp_path_factory.mktemp("kernels")))
        yield
