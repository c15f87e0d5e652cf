"""The job `replay_dead_letters`."""
# no `from __future__ import annotations`: Dagster reads the annotations of ops

from typing import TYPE_CHECKING

import dagster as dg
import polars as pl
from pydantic import Field

from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.checks.definitions import DEAD_LETTERS, dead_letter_verdict
from market_pipeline.orchestration.event_metadata import Metadata, frame_table
from market_pipeline.orchestration.failures import readable_failures
from market_pipeline.orchestration.jobs import REPLAY_DEAD_LETTERS
from market_pipeline.orchestration.resources import BusResource

if TYPE_CHECKING:
    from market_pipeline.bus.dead_letter_box import DeadLetterBox, Replayed

SAY_EVERY = 1_000


class ReplayConfig(dg.Config):
    """Which dead letters are replayed."""

    reason: str = Field(default="", description="Only this reason, such as digest_mismatch; empty: every reason")
    stream: str = Field(default="", description="Only those from this stream, such as LIVE; empty: every stream")
    limit: int = Field(default=0, ge=0, description="At most so many, oldest first; 0: all that are there now")


def build_replay_job() -> dg.JobDefinition:
    """Build the job that sends dead letters again to where they came from."""

    @dg.op(description="Sends the chosen dead letters again, oldest first, and evaluates the check dead_letters.")
    def replay(context: dg.OpExecutionContext, config: ReplayConfig, bus: BusResource) -> None:
        from market_pipeline.bus.dead_letters import Selection

        said = 0

        def progress(done: "Replayed") -> None:
            nonlocal said
            handled = done.replayed + done.refused
            if handled - said >= SAY_EVERY:
                said = handled
                context.log.info(f"{done.replayed:,} replayed so far, {done.refused:,} cannot be")

        async def work(box: "DeadLetterBox") -> "Replayed":
            return await box.replay_all(selection, config.limit or None, progress)

        with readable_failures():
            selection = Selection(config.reason, config.stream)
            done = bus.with_dead_letters(work)
        context.log.info(f"{done.replayed:,} replayed, {done.refused:,} cannot be replayed as they are")
        metadata: Metadata = {"replayed": done.replayed, "not replayable": done.refused}
        if done.refusals:
            table = pl.DataFrame(done.refusals, schema={"letter": pl.Int64, "why": pl.String}, orient="row")
            metadata["cannot be replayed"] = frame_table(table)
        context.add_output_metadata(metadata)
        # log_event takes evaluations too; its annotation does not say so
        context.log_event(dead_letter_verdict(bus).evaluation(MINUTES, DEAD_LETTERS))  # type: ignore[arg-type]

    @dg.job(
        name=REPLAY_DEAD_LETTERS,
        description=(
            "Sends dead letters again to the subject they came from, with their own headers and payload, once the "
            "cause is mended, and removes each from DEAD_LETTERS when its stream has it. What fails again comes back "
            "as a new dead letter."
        ),
    )
    def replay_dead_letters() -> None:
        replay()

    return replay_dead_letters
