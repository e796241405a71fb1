"""Which files of a repository are picked."""

import pytest
from huggingface_hub.utils import filter_repo_objects
from hypothesis import given
from hypothesis import strategies as st

from moorage.errors import SourceError
from moorage.sources import RepoFile, Selection, formats, quantizations, select


def repo(*paths):
    return [RepoFile(p, 1, "0" * 64) for p in paths]


def picked(available, /, **wanted):
    return [f.path for f in select(available, Selection(**wanted))]


QWEN = repo(
    "README.md",
    "Qwen3-8B-Q4_K_M.gguf",
    "Qwen3-8B-Q4_K_S.gguf",
    "Qwen3-8B-IQ4_XS.gguf",
    "Qwen3-8B-UD-Q4_K_XL.gguf",
    "Qwen3-8B-UD-Q5_K_M.gguf",
    "Qwen3-8B-Q5_K_M.gguf",
    "Qwen3-8B-Q4_0.gguf",
    "Qwen3-8B-Q4_0_4_4.gguf",
    "Q8_0/Qwen3-8B-Q8_0-00001-of-00002.gguf",
    "Q8_0/Qwen3-8B-Q8_0-00002-of-00002.gguf",
    "BF16/weights-00001-of-00001.gguf",
    "mmproj-Q8_0.gguf",
    "mmproj-BF16.gguf",
    "mmproj-F16.gguf",
    "gemma_3-f16.gguf",
)


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        ("Q4_K_M", ["Qwen3-8B-Q4_K_M.gguf"]),
        ("q4_k_m", ["Qwen3-8B-Q4_K_M.gguf"]),
        ("Q4_0", ["Qwen3-8B-Q4_0.gguf"]),
        ("IQ4_XS", ["Qwen3-8B-IQ4_XS.gguf"]),
        ("UD-Q4_K_XL", ["Qwen3-8B-UD-Q4_K_XL.gguf"]),
        ("Q4_K_XL", ["Qwen3-8B-UD-Q4_K_XL.gguf"]),
        ("Q5_K_M", ["Qwen3-8B-Q5_K_M.gguf"]),
        ("UD-Q5_K_M", ["Qwen3-8B-UD-Q5_K_M.gguf"]),
        ("BF16", ["BF16/weights-00001-of-00001.gguf"]),
        ("F16", ["gemma_3-f16.gguf"]),
        ("Q8_0", ["Q8_0/Qwen3-8B-Q8_0-00001-of-00002.gguf", "Q8_0/Qwen3-8B-Q8_0-00002-of-00002.gguf"]),
    ],
)
def test_quantization_picks_every_part_and_the_projector(quantization, expected):
    assert picked(QWEN, quantization=quantization) == [*expected, "mmproj-F16.gguf"]


def test_exclude_leaves_the_projector_behind():
    assert picked(QWEN, quantization="Q4_0", exclude=("mmproj*",)) == ["Qwen3-8B-Q4_0.gguf"]


@pytest.mark.parametrize(
    ("files", "wanted", "reason", "words"),
    [
        (QWEN, {"quantization": "Q4_K"}, "NoFilesMatched", "quantization Q4_K"),
        (QWEN, {"quantization": "XS"}, "NoFilesMatched", "Qwen3-8B-IQ4_XS.gguf"),
        (
            repo("a-Q4_0.gguf", "b-Q4_0.gguf"),
            {"quantization": "Q4_0"},
            "AmbiguousSelection",
            "a-Q4_0.gguf, b-Q4_0.gguf",
        ),
        (repo("x/a-Q4_0.gguf", "y/a-Q4_0.gguf"), {"quantization": "Q4_0"}, "AmbiguousSelection", "2 models"),
        (
            repo("a-Q4_0-00001-of-00003.gguf", "a-Q4_0-00003-of-00003.gguf"),
            {"quantization": "Q4_0"},
            "FileNotFound",
            "part 2 of 3",
        ),
        (repo("a.gguf"), {"files": ("b.gguf",)}, "FileNotFound", "b.gguf; there are a.gguf"),
        (repo("a.gguf"), {"include": ("*.bin",)}, "NoFilesMatched", "include *.bin"),
        ([], {}, "NoFilesMatched", "no files"),
        (repo(*[f"f{i:02d}" for i in range(25)]), {"include": ("x",)}, "NoFilesMatched", "f19 and 5 more"),
        (
            [RepoFile(f"{at}", 1 << 50) for at in range(9000)],
            {},
            "NotAHub",
            "the files have 10,133,099,161,583,616,000",
        ),
        (repo("a", "a/b"), {}, "UnsafeName", "a file and a folder"),
        (repo("a", "a"), {}, "UnsafeName", "twice"),
        (repo("../a"), {}, "UnsafeName", "'..'"),
    ],
)
def test_what_cannot_be_picked_is_said(files, wanted, reason, words):
    with pytest.raises(SourceError) as caught:
        select(files, Selection(**wanted))
    assert caught.value.reason == reason
    assert words in caught.value.message
    assert not caught.value.retryable


def test_a_hostile_name_that_nobody_asked_for_does_not_matter():
    assert picked(repo("../x", "model.gguf"), include=("model*",)) == ["model.gguf"]


def test_exact_files_with_brackets():
    files = repo("a[1].gguf", "a1.gguf")
    assert picked(files, files=("a[1].gguf",)) == ["a[1].gguf"]
    assert picked(files, include=("a[1].gguf",)) == ["a1.gguf"]
    assert picked(files, files=("a[1].gguf",), include=("a1*",)) == ["a1.gguf", "a[1].gguf"]


names = st.lists(st.text("ab/.*?[]!", min_size=1, max_size=8).filter(lambda s: not s.startswith("/")), unique=True)
patterns = st.lists(st.text("ab/.*?[]!", min_size=1, max_size=5), max_size=2)


@given(names, patterns, patterns)
def test_patterns_mean_what_huggingface_hub_means(paths, include, exclude):
    expected = sorted(filter_repo_objects(paths, allow_patterns=include or None, ignore_patterns=exclude or None))
    try:
        ours = picked(repo(*paths), include=tuple(include), exclude=tuple(exclude))
    except SourceError as error:
        assert error.reason == "UnsafeName" or not expected
    else:
        assert ours == expected


@given(st.integers(1, 12), st.sampled_from(["Q4_K_M", "Q8_0", "BF16"]), st.randoms())
def test_all_parts_in_any_order(total, quantization, rng):
    parts = [f"m-{quantization}-{i:05d}-of-{total:05d}.gguf" for i in range(1, total + 1)]
    rng.shuffle(parts)
    assert picked(repo(*parts, "other-Q2_K.gguf"), quantization=quantization) == sorted(parts)


def test_formats():
    assert formats(["b.gguf", "a.GGUF", "x/m.safetensors", "README.md"]) == {
        "GGUF": ["a.GGUF", "b.gguf"],
        "Safetensors": ["x/m.safetensors"],
    }


GEMMA = [
    RepoFile(path, size)
    for path, size in {
        "README.md": 1,
        "gemma-3-12b-it-BF16.gguf": 2400,
        "Q8_0/gemma-3-12b-it-Q8_0-00001-of-00002.gguf": 800,
        "Q8_0/gemma-3-12b-it-Q8_0-00002-of-00002.gguf": 450,
        "gemma-3-12b-it-Q4_K_M.gguf": 730,
        "gemma-3-12b-it-UD-Q4_K_XL.gguf": 740,
        "gemma-3-12b-it-Q2_K.gguf": 480,
        "gemma-3-12b-it-UD-IQ1_S.gguf": 320,
        "gemma-3-12b-it-UD-IQ2_XXS.gguf": 730,
        "gemma-3-1b-it-Q4_0.gguf": 70,  # another model
        "imatrix.gguf": 3,
        "mmproj-F16.gguf": 85,
    }.items()
]


def known(available, /, **wanted):
    asked = Selection(**wanted)
    return [(q.name, q.size) for q in quantizations(available, asked, select(available, asked))]


def test_the_quantizations_of_a_model_that_are_smaller_than_the_chosen_one():
    assert known(GEMMA, quantization="Q8_0") == [
        ("Q8_0", 1250),
        ("UD-Q4_K_XL", 740),
        ("Q4_K_M", 730),
        ("UD-IQ2_XXS", 730),
        ("Q2_K", 480),
        ("UD-IQ1_S", 320),
    ]
    assert known(GEMMA, quantization="q2_k") == [("Q2_K", 480), ("UD-IQ1_S", 320)]
    assert known(GEMMA, quantization="IQ1_S") == [("UD-IQ1_S", 320)]


def test_each_of_them_is_what_that_quantization_selects():
    for name, size in known(GEMMA, quantization="BF16"):
        chosen = select(GEMMA, Selection(quantization=name))
        assert sum(f.size for f in chosen if "mmproj" not in f.path) == size


def test_what_the_patterns_leave_out_or_no_name_tells_is_not_among_them():
    assert known(GEMMA, include=("*Q4_K_M*",)) == [("Q4_K_M", 730)]
    assert known(GEMMA, quantization="Q8_0", exclude=("*UD-*",)) == [("Q8_0", 1250), ("Q4_K_M", 730), ("Q2_K", 480)]
    assert known([RepoFile("model.gguf", 5), RepoFile("model-Q2_K.gguf", 2)], include=("model.gguf",)) == []
    assert known([RepoFile("config.json", 1), RepoFile("model.safetensors", 9)]) == []


def test_a_split_model_that_lacks_a_part_is_none():
    broken = [f for f in GEMMA if "00002" not in f.path]
    assert ("Q8_0", 800) not in known(broken, quantization="BF16")


def test_very_many_files_are_not_compared():
    many = [RepoFile(f"m{i}-Q4_K_M.gguf", i) for i in range(2000)]
    assert quantizations(many, Selection(), many[:1]) == []
    some = [RepoFile(f"m-Q4_{i}.gguf", i + 1) for i in range(200)]
    assert len(quantizations(some, Selection(), some[-1:])) <= 32
