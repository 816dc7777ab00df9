"""What stands in for a GPU that records work."""

from __future__ import annotations


class Again:
    """Records by keeping the work, and replays by doing it again; counts both."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        again = self.record(work)
        state, history = again()

        def replay():
            self.replayed += 1
            fresh, rose = again()
            for name, value in fresh.items():
                state[name].copy_(value)
            history.copy_(rose)

        return (state, history), replay

    def record(self, work):
        return work
