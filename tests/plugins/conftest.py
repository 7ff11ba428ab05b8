from tests.lab.conftest import beginning, long_segments, replicated, two_pools

__all__ = ["beginning", "long_segments", "replicated", "two_pools"]
