import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moorage.bench.prompts import PromptMaker, close_enough, first_length, next_length


@pytest.mark.parametrize("length", [1, 5, 60, 500, 20_000])
def test_a_prompt_has_exactly_the_length_asked_for(length):
    prompt = PromptMaker(0).make(length)
    assert len(prompt) == length
    assert prompt.isascii()


def test_no_two_prompts_share_a_beginning_that_a_prefix_cache_could_use():
    """Caches share whole blocks of 16 tokens and more, some 60 characters; the same seed must not help either."""
    makers = [PromptMaker(0), PromptMaker(0), PromptMaker(1)]
    heads = [maker.make(2000)[:40] for maker in makers for _ in range(300)]
    assert len(set(heads)) == len(heads)


def test_prompts_do_not_share_their_middle():
    bodies = [PromptMaker(seed).make(4000)[500:800] for seed in range(50)]
    assert len(set(bodies)) == len(bodies)


@example(wanted=64, characters_per_token=2.75, template=43, wobble=0.0)
@example(wanted=64, characters_per_token=5.75, template=42, wobble=0.0)
@given(
    wanted=st.integers(64, 100_000),
    characters_per_token=st.floats(1.0, 8.0),
    template=st.integers(0, 60),
    wobble=st.floats(-0.003, 0.003),
)
def test_the_search_finds_any_tokenizers_length_without_ever_overshooting(
    wanted, characters_per_token, template, wobble
):
    def tokens(length, attempt):
        return round(length / characters_per_token * (1 + wobble * (-1) ** attempt)) + template

    seen = [(length := first_length(wanted), tokens(length, 0))]
    while not close_enough(seen[-1][1], wanted) and len(seen) < 8:
        length = next_length(seen, wanted)
        seen.append((length, tokens(length, len(seen))))
    assert close_enough(seen[-1][1], wanted), seen
    most = max(count for _, count in seen)
    assert most <= max(wanted * 1.03 + 4, seen[0][1]), "a model's context would have been exceeded"


def test_a_server_that_counts_nonsense_does_not_break_the_search():
    assert next_length([(100, 0)], 500) == 400
    assert next_length([(100, 50), (100, 50)], 500) == 400
    assert next_length([(100, 50), (200, 40)], 500) > 0
    assert next_length([(10, 500), (5, 495)], 20) == 1
