import msgspec
import pytest

from servicefile_small import DRIVERS, EXAMPLE
from waybill.core.errors import InvalidInputError
from waybill.deploy.servicefile_parse import parse
from waybill.deploy.servicefile_tree import concerned, distinct, find, matches


def service(path, name, *paths):
    text = EXAMPLE.replace("service: hello", f"service: {name}" + (f"\npaths: [{', '.join(paths)}]" if paths else ""))
    return parse(text, path, DRIVERS)


def test_service_files_are_found_in_any_folder_but_not_in_foreign_ones():
    tree = [
        "web/api/waybill.yaml",
        "waybill.yml",
        "api/waybill.yml",
        "node_modules/thing/waybill.yml",
        "api/vendor/x/waybill.yml",
        ".hidden/waybill.yml",
        "docs/my-waybill.yml",
        "waybill.yml.orig",
    ]
    assert find(tree) == ["waybill.yml", "api/waybill.yml", "web/api/waybill.yaml"]


def test_both_names_in_one_folder_is_a_fault_that_names_the_folder():
    with pytest.raises(InvalidInputError, match=r"api has both waybill\.yml and waybill\.yaml"):
        find(["api/waybill.yml", "api/waybill.yaml", "waybill.yml"])
    with pytest.raises(InvalidInputError, match="201 service files"):
        find(f"a{n}/waybill.yml" for n in range(201))


def test_two_files_may_not_claim_one_service():
    files = [service("api/waybill.yml", "hello"), service("web/waybill.yml", "hello")]
    with pytest.raises(InvalidInputError, match=r"api/waybill\.yml and web/waybill\.yml both.*'hello'"):
        distinct(files)
    distinct([files[0], msgspec.structs.replace(files[1], service="other")])


@pytest.mark.parametrize(
    ("changed", "names"),
    [
        (["README.md"], ["all"]),
        (["api/main.py"], ["all", "api"]),
        (["api/deep/down/main.py"], ["all", "api"]),
        (["apiary/main.py"], ["all"]),
        (["web/waybill.yml"], ["all", "web"]),  # its own file, though its paths do not name it
        (["web/.waybill/production.enc.yml"], ["all", "web"]),  # and its locked variables
        (["web/README.md"], ["all"]),
        (["web/src/index.html", "api/x"], ["all", "api", "web"]),
        (["libs/a/b.py"], ["all", "web"]),
        ([], []),
    ],
)
def test_a_change_concerns_the_services_whose_paths_it_touches(changed, names):
    files = [
        service("waybill.yml", "all"),
        service("api/waybill.yml", "api"),
        service("web/waybill.yml", "web", "web/src", "libs/*.py"),
    ]
    assert [file.service for file in concerned(files, changed)] == names


@pytest.mark.parametrize(
    ("path", "pattern", "covered"),
    [
        ("a/b/c", "a/**", True),
        ("a/b/c", "a/**/c", True),
        ("a/c", "a/**/c", True),
        ("c.py", "**/*.py", True),
        ("a/b", "a/", True),
        ("a", "a/", False),
        ("ab/c", "a", False),
        ("A/c", "a", False),
        ("a/b.py", "*.py", True),
        ("odd[1]/x", "odd[[]1]/", True),
    ],
)
def test_patterns(path, pattern, covered):
    assert matches(path, pattern) is covered


def test_a_folder_with_pattern_letters_in_its_name_still_concerns_its_own_service():
    files = [service("odd[1]/waybill.yml", "odd")]
    assert concerned(files, ["odd[1]/main.py"]) == files
    assert concerned(files, ["odd1/main.py"]) == []
