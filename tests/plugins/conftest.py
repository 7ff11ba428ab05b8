from tests.lab.conftest import beginning, replicated, two_pools

__all__ = ["beginning", "replicated", "two_pools"]
