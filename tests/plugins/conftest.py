from tests.lab.conftest import replicated, two_pools

__all__ = ["replicated", "two_pools"]
