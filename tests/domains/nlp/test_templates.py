from domains.nlp.templates import shared_templates, template


def test_what_is_filled_in_is_left_out():
    assert template("Pay 12.50 EUR to a@b.com, see https://x.y/z?q=1 @you #now") == (
        "pay eur to see now"
    )
    assert template("ÜBER 5 Straßen") == template("über 77 straßen!")
    assert template("আমি ৫ গান") != template("আমি গান গাই")


def test_texts_in_two_parts_are_counted():
    notes = shared_templates(
        {
            "train": ["Order 1 is late", "All well", "12:30", "same"],
            "val": ["nothing like it"],
            "test": ["order 99 is LATE!", "same", "13:45", "new"],
        }
    )
    assert notes == [
        "2 of 4 texts of test stand in train too, up to numbers, case and punctuation (1 word for"
        " word), such as 'order 99 is LATE!'"
    ]


def test_nothing_is_told_of_different_texts():
    assert shared_templates({"train": ["a"], "val": ["b"], "test": ["c"]}) == []
