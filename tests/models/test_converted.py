from lacache.models.converted import converted_folder


def test_folder_depends_on_name_and_content() -> None:
    assert converted_folder("a", "0" * 64) != converted_folder("a", "1" * 64)
    assert converted_folder("a", "0" * 64) != converted_folder("b", "0" * 64)
