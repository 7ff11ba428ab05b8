from xorepd.relay.cache import BlockCache, MemoryBudget

CONTENT = bytes(100)
UNIT = memoryview(CONTENT)


def test_the_least_used_units_go_first() -> None:
    cache = BlockCache(MemoryBudget(300))
    for name in (b"a", b"b", b"c"):
        cache.put(name, UNIT)
    cache.get(b"a", 100)

    cache.put(b"d", UNIT)

    assert cache.get(b"b", 100) is None
    assert all(cache.get(name, 100) == CONTENT for name in (b"a", b"c", b"d"))


def test_a_unit_of_another_length_is_another_unit() -> None:
    cache = BlockCache(MemoryBudget(300))
    cache.put(b"a", UNIT)

    assert cache.get(b"a", 99) is None


def test_no_connection_takes_from_the_units_of_another() -> None:
    budget = MemoryBudget(200)
    one, other = BlockCache(budget), BlockCache(budget)
    one.put(b"a", UNIT)
    one.put(b"b", UNIT)

    other.put(b"c", UNIT)
    assert other.get(b"c", 100) is None
    assert one.get(b"a", 100) == CONTENT

    one.clear()
    other.put(b"c", UNIT)
    assert other.get(b"c", 100) == CONTENT
