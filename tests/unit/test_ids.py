import waybill.core.ids as i


def test_ids_sort_by_time_and_are_version_7():
    a = i.new_id()
    assert a[14] == "7" and a[19] in "89ab" and len({i.new_id() for _ in range(1000)}) == 1000
