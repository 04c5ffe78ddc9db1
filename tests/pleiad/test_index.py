from pleiad import index


def test_the_static_index_matches_the_code():
    assert index.build() == index.index(), "run `make docs`"
