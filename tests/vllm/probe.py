"""Runs inside the image of vLLM: what the real server's parser makes of command lines, as JSON.

The command lines come as a JSON list of lists in the environment variable ARGUMENTS.
"""

import contextlib
import io
import json
import os
from pathlib import Path

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.version import __version__


def parsed(parser: FlexibleArgumentParser, arguments: list[str]) -> dict[str, object]:
    """Every value that the parser got from `arguments`, or its complaint under `error`."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            found = parser.parse_args(arguments)
            validate_parsed_serve_args(found)
    except SystemExit:
        return {"error": told.getvalue()[-2000:]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:2000]}
    return {name: value for name, value in vars(found).items() if isinstance(value, str | int | float | bool | list)}


def main() -> None:
    """Print one JSON object."""
    Path("/tmp/template.jinja").write_text("{{ messages }}")  # vLLM looks whether there is one
    parser = make_arg_parser(FlexibleArgumentParser())
    options = sorted({name for action in parser._actions for name in action.option_strings})
    answer = {
        "version": __version__,
        "options": options,
        "parsed": [parsed(parser, arguments) for arguments in json.loads(os.environ["ARGUMENTS"])],
        "toolParsers": sorted(ToolParserManager.list_registered()),
        "reasoningParsers": sorted(ReasoningParserManager.list_registered()),
    }
    print(json.dumps(answer))


main()
