from __future__ import annotations

from alula.report.tables import Cell, Column, Html, element, join, path, safe, table


def test_only_markup_stays_markup():
    assert safe("<b>") == "&lt;b&gt;"
    assert safe(Html("<b>")) == "<b>"
    assert element("p", "a & b", title='"') == '<p title="&quot;">a &amp; b</p>'
    assert element("p", class_=None) == "<p></p>"
    assert join(["<", Html("<br>")]) == "&lt;<br>"
    assert isinstance(join([]), Html)


def test_joining_plain_text_to_markup_is_not_markup():
    mixed = Html("<b>") + "<script>"
    assert not isinstance(mixed, Html)
    assert safe(mixed) == "&lt;b&gt;&lt;script&gt;"


def test_a_layer_name_may_break_after_its_separators():
    assert path("a/b.c_d<x>") == "a/<wbr>b.<wbr>c_<wbr>d&lt;x&gt;"
    assert path("//") == "//"


def test_cells_carry_their_order():
    made = table("t", (Column("a"), Column("b", number=True)), [("x", Cell("1 kB", 1000)), ("y", Cell("-"))])
    assert '<td class="number" data-order="1000.0">1 kB</td>' in made
    assert '<td class="number">-</td>' in made
    assert '<th scope="row">x</th>' in made
    assert "<button" not in made


def test_marked_rows():
    made = table("t", (Column("a"),), [("x",), ("y",)], marked=[1], sortable=True)
    assert '<tr><th scope="row">x</th></tr><tr class="marked">' in made
    assert '<button type="button">a</button>' in made
