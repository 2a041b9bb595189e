"""What the cleaner keeps and drops, one rule at a time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lacache.corpora.wikipedia import clean_wikitext

CASES = {
    "links keep their words": ("a [[horse|big horse]], a [[cat]]", "a big horse, a cat"),
    "external links keep their words": ("see [http://a.b here], [http://a.b]", "see here,"),
    "files and categories go": ("a[[File:x.png|thumb|a [[cat]]]]b[[Category:C]]", "ab"),
    "languages go": ("a[[de:Pferd]]", "a"),
    "style marks go": ("'''bold''' and ''slanted''", "bold and slanted"),
    "references go": ('a<ref name="x">{{cite|y}}</ref> b<ref name="x"/>', "a b"),
    "comments go": ("a<!-- b -->c", "ac"),
    "formulas go": ("so <math>x^2</math> is", "so is"),
    "tables go": ('a\n{| class="x"\n|-\n| 1 || 2\n|}\nb', "a\n\nb"),
    "broken tables go": ("a\n| 1 || 2\nb", "a\n\nb"),
    "templates go": ("{{Infobox|a=b}}A word", "A word"),
    "nested templates go": ("{{a|{{b|[[c]]}}}}d", "d"),
    "lengths stay": ("it is {{convert|3|m|ft}} long", "it is 3 m long"),
    "foreign words stay": ("a {{lang|fr|''mot''}} in French", "a mot in French"),
    "entities are characters": ("a&nbsp;&ndash;&nbsp;b &amp; c", "a \u2013 b & c"),
    "headings stay": ("a\n\n== Life ==\nb", "a\n\nLife\nb"),
    "line breaks are line ends": ("a<br/>b", "a\nb"),
    "tail goes": ("a\n==References==\n{{reflist}}\n==More==\nb", "a"),
    "tail goes in any case": ("a\n== see Also ==\n* [[b]]", "a"),
    "words like the tail's stay": ("a\n== Life ==\nSee also b", "a\n\nLife\nSee also b"),
    "empty brackets go": ("a ({{lang-fr|b}}; {{IPA|c}}; 9) d ({{e}}) f", "a (9) d f"),
}


@pytest.mark.parametrize(("wikitext", "clean"), CASES.values(), ids=CASES)
def test_cleaner(wikitext: str, clean: str) -> None:
    assert clean_wikitext(wikitext) == clean


@given(st.text("ab {}[]|'=<>!\n&;:", max_size=80))
def test_any_markup_is_survived(wikitext: str) -> None:
    clean = clean_wikitext(wikitext)
    assert clean == clean.strip()
    assert "\n\n\n" not in clean
    assert "''" not in clean
