from tests.lab.conftest import two_pools

__all__ = ["two_pools"]
