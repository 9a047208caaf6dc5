import pytest

from metastable import yaml_text


def test_plain_values_are_read() -> None:
    assert yaml_text.read("a: {b: [1, 2.5, yes, null]}") == {"a": {"b": [1, 2.5, True, None]}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "the name 'a' is given twice, in line 3, column 1"),
        ("a: {b: 1, c: 2, b: 1}", "the name 'b' is given twice, in line 1, column 17"),
        ("a: [1,\nb: }", "line 2"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
        ("a: 2020-99-99", "month must be in"),
        ("\x01", "special characters are not allowed"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        yaml_text.read(text)
    assert "\n" not in str(refused.value)
