"""Real servers for tests: each starts in well under a second, on ports of its own, and is gone at the end."""
