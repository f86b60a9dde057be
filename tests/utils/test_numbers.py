import pytest

from anyorder.errors import UserError
from anyorder.utils.numbers import check_positive, is_whole


def test_a_boolean_is_no_whole_number():
    assert [is_whole(value) for value in (0, -3, True, 1.0, "1", None)] == [True, True, False, False, False, False]


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "2", None])
def test_refuses_what_is_no_whole_number_above_0(value):
    check_positive("steps", 1)
    with pytest.raises(UserError) as error:
        check_positive("steps", value, ", or leave it out")
    assert str(error.value) == f"steps is {value!r}: give a whole number above 0, or leave it out."
