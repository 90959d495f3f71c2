"""What happens in the demo with PostgreSQL, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qorb._demo.scenario import Step

if TYPE_CHECKING:
    from qorb._demo.failover.stage import ClusterStage


def scenario() -> tuple[Step[ClusterStage], ...]:
    """Give the steps, in order. A standby is always left that takes part in every commit."""
    return (
        Step(
            0.10,
            "kill a standby",
            "db-3, a standby, is killed (kill -9).",
            "db-2 takes all reads, writes notice nothing, no claim fails.",
            lambda stage: stage.kill("db-3"),
        ),
        Step(
            0.20,
            "start it again",
            "db-3 is started again.",
            "it is online at its next try (1 s at most), and shares the reads.",
            lambda stage: stage.start("db-3"),
        ),
        Step(
            0.29,
            "cut all sessions",
            "All sessions are cut at all servers (pg_terminate_backend).",
            "queries under way fail; claims get new connections, none fails.",
            lambda stage: stage.cut(),
        ),
        Step(
            0.38,
            "freeze a standby",
            "db-2 hangs (SIGSTOP): it keeps its connections, and answers nothing.",
            "checks and queries time out, db-2 goes offline, db-3 reads on.",
            lambda stage: stage.freeze("db-2"),
        ),
        Step(
            0.50,
            "let it go on",
            "db-2 goes on (SIGCONT), beginning with all that it was asked.",
            "no late answer reaches a client: wrong answers stay 0.",
            lambda stage: stage.thaw("db-2"),
        ),
        Step(
            0.60,
            "kill the primary",
            "db-1, the primary, is killed. Nobody can write.",
            "claims for writing wait in line, reads go on.",
            lambda stage: stage.kill_primary(),
        ),
        Step(
            0.66,
            "promote a standby",
            "The standby that has received most is promoted.",
            "the pool for writes has it in a second; those who waited write on.",
            lambda stage: stage.promote(),
        ),
        Step(
            0.80,
            "the old primary comes back",
            "db-1 comes back, as a standby of the new primary.",
            "reads go to it as to any standby, and no write does.",
            lambda stage: stage.follow("db-1"),
        ),
    )
