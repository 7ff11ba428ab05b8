"""From a request to its handler and back: sessions, operations, tasks, dispatch."""
