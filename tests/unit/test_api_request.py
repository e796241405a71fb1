"""Request parameters as they are read and as they go into request bodies."""

import pytest
from pydantic import ValidationError

from moorage.api.request import AliasRequest, Parameters


def test_what_is_not_said_is_not_sent():
    assert Parameters().flat() == {}
    assert Parameters.model_validate({"temperature": 0, "stop": ["END"]}).flat() == {"temperature": 0, "stop": ["END"]}


def test_extra_parameters_stand_beside_the_others_with_any_value():
    given = {"top_p": 0.5, "extra": {"top_k": 40, "logit_bias": {"1": -100}, "grammar": None, "samplers": ["a"]}}
    sent = {"top_p": 0.5, "top_k": 40, "logit_bias": {"1": -100}, "grammar": None, "samplers": ["a"]}
    assert Parameters.model_validate(given).flat() == sent


def test_names_are_openais_below_and_camel_case_above():
    request = AliasRequest.model_validate({"defaults": {"max_tokens": 4, "maxTokens": 5}, "systemPrompt": "Hi"})
    assert (request.defaults.max_tokens, request.system_prompt) == (4, "Hi")
    assert request.dump() == {
        "defaults": {"max_tokens": 4, "extra": {}},
        "overrides": {"extra": {}},
        "drop": [],
        "systemPrompt": "Hi",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        *({"temperature": 2.01}, {"temperature": -0.1}, {"top_p": 1.1}, {"max_tokens": 0}, {"stop": list("abcde")}),
        *({"frequency_penalty": -2.1}, {"presence_penalty": 2.1}, {"seed": 0.5}, {"extra": {"stop": "x"}}),
        {"extra": {str(n): n for n in range(33)}},
    ],
)
def test_what_is_out_of_range_is_refused(wrong: dict):
    with pytest.raises(ValidationError):
        Parameters.model_validate(wrong)
