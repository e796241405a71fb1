"""The metrics page: whole, in Prometheus' format, and nobody waits for it."""

import asyncio
import gc

from prometheus_client.parser import text_string_to_metric_families

from moorage.gateway.admin import _Scrape
from moorage.gateway.server import ClientConnection
from tests.process.gateway.support import OK, RawEngine, always, chat, model, serving
from tests.support.eventually import eventually

ROUTES = 205


async def test_a_page_of_many_routes_is_whole_and_each_family_stands_together():
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed:
        assert (await bed.ask(chat())).status == 200
        for number in range(ROUTES):
            bed.gateway.stats.route("", f"other-{number}").prompt_tokens = number
        page = (await bed.admin("/metrics")).body.decode()
        families = list(text_string_to_metric_families(page))
        found = {family.name: family for family in families}
        assert len(found) == len(families), "each family comes once"
        tokens = {s.labels["model"]: s.value for s in found["moorage_gateway_tokens"].samples
                  if s.labels["kind"] == "prompt"}  # fmt: skip
        assert tokens == {"m": tokens["m"], **{f"other-{number}": number for number in range(ROUTES)}}
        counts = [s for s in found["moorage_gateway_request_seconds"].samples if s.name.endswith("_count")]
        assert len(counts) == ROUTES + 1
        assert sum(s.value for s in counts) == 1
        assert "process_resident_memory_bytes" in found


async def test_requests_go_on_while_the_page_is_made():
    async with serving() as bed:
        for number in range(ROUTES):
            bed.gateway.stats.route("", f"other-{number}")
        asked, turns = asyncio.create_task(bed.admin("/metrics")), 0
        while not asked.done():
            await asyncio.sleep(0)
            turns += 1
        assert asked.result().status == 200
        assert turns > 5 * ROUTES / 10, "the page is made in one go"


async def test_a_scrape_leaves_nothing_for_the_garbage_collector():
    """Pages of a thousand Models are a megabyte, and it comes by rarely."""
    async with serving() as bed:
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                assert (await bed.admin("/metrics")).status == 200
            kept = lambda: [o for o in gc.get_objects() if isinstance(o, _Scrape | ClientConnection)]  # noqa: E731
            await eventually(lambda: not kept(), what="connections and pages are gone")
        finally:
            gc.enable()
