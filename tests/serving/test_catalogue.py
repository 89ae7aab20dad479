"""Catalogues: from every source the same, and nothing is available that is sensitive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engines import ITEMS, bundles

from consentier.errors import ConfigError, DataError
from consentier.serving import Catalogue, Recommender, Request
from consentier.serving.item_columns import FilterError, ItemColumns
from consentier.serving.loading import read_shop_rules
from consentier.serving.reloading import ReloadingRecommender

FACTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sold-out": {"available": False},
    "pills": {"sensitive": True},
    "unsure": {"available": None, "sensitive": None},
}
EXPECTED = Catalogue(frozenset({"plain", "unsure"}), frozenset({"pills"}))


def test_a_mapping_a_csv_and_a_parquet_file_say_the_same(tmp_path: Path) -> None:
    rows = [
        {"item_id": item, "available": facts.get("available"), "sensitive": facts.get("sensitive")}
        for item, facts in FACTS.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text(
        "item_id,price,available,sensitive\nplain,1,yes,\nsold-out,2,False,no\npills,3,1,TRUE\nunsure,4,,\n"
    )
    for source in (FACTS, tmp_path / "items.parquet", str(tmp_path / "items.csv"), EXPECTED):
        found = Catalogue.of(source)
        assert (found.available, found.sensitive) == (EXPECTED.available, EXPECTED.sensitive)


def test_item_ids_alone_are_all_available() -> None:
    assert Catalogue.of(["a", "b"]) == Catalogue(frozenset({"a", "b"}))
    assert Catalogue.of(iter({"a"})).sensitive == frozenset()


def test_what_is_sensitive_is_never_available() -> None:
    assert Catalogue(frozenset({"a", "b"}), frozenset({"b", "c"})).available == {"a"}


def test_a_mapping_cannot_rename_its_items() -> None:
    assert Catalogue.of({"a": {"item_id": "b"}}).available == {"a"}


@pytest.mark.parametrize("wrong", [[1, 2], [None], b"items", [b"a"]])
def test_items_that_are_no_texts_are_mistakes(wrong: Any) -> None:
    with pytest.raises(TypeError, match="item ids are strings"):
        Catalogue.of(wrong)
    with pytest.raises(TypeError, match="sensitive must be a collection"):
        Catalogue(frozenset(), "pills")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "items.csv",
            b"item_id,available\na,perhaps\n",
            "row 1: available: 'perhaps' is neither true nor false",
        ),
        ("items.csv", b"sku,available\na,1\n", "row 1: item_id is missing"),
        ("items.csv", b"item_id\na\n\xff\xfe\n", "cannot be read"),
        ("items.parquet", b"PAR1 not at all", "cannot be read"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        Catalogue.of(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.csv: there is no such file"):
        Catalogue.of(tmp_path / "items.csv")


def test_attributes_are_read_with_their_kinds(tmp_path: Path) -> None:
    facts = {
        "a": {"category": "shoes", "price": 12.5, "sale": True, "code": "007", "tags": None},
        "b": {"category": None, "price": 9.0, "sale": None, "code": "12", "tags": None},
    }
    rows = [{"item_id": item, **row, "available": True} for item, row in facts.items()]
    rows[0]["tags"] = ["x"]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text(
        "item_id,category,price,sale,code,tags,available\na,shoes,12.5,true,007,,yes\nb,,9,,12,,yes\n"
    )
    for source in (facts, tmp_path / "items.parquet", tmp_path / "items.csv"):
        columns = ItemColumns(Catalogue.of(source).attributes, ("a", "b"))
        assert columns.values("category") == ["shoes", None]
        assert columns.values("price") == [12.5, 9.0]
        assert columns.values("sale") == [True, None]
        assert columns.values("code") == ["007", "12"]
        assert columns.values("tags") == [None, None]
    with pytest.raises(DataError, match="row 1: price"):
        Catalogue.of({"a": {"price": object()}})


def test_only_the_attributes_that_are_asked_for_are_read(tmp_path: Path) -> None:
    facts = {"a": {"category": "shoes", "price": 1.5, "text": "long"}, "b": {"category": None, "text": "x"}}
    rows = [{"item_id": item, "available": True, **row} for item, row in facts.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    (tmp_path / "items.csv").write_text(
        "item_id,category,price,text,available\na,shoes,1.5,long,yes\nb,,,x,yes\n"
    )
    for source in (facts, tmp_path / "items.parquet", tmp_path / "items.csv"):
        found = Catalogue.of(source, {"category", "unheard-of"})
        assert found.available == {"a", "b"}
        assert {name for row in found.attributes.values() for name in row} == {"category"}
        assert found.unread == {"price", "text"}
        assert ItemColumns(found.attributes, ("a", "b")).values("category") == ["shoes", None]
        assert Catalogue.of(source, ()).attributes == {}
        assert Catalogue.of(source).unread == frozenset()
        with pytest.raises(FilterError, match="'price' was not read: name it in filter_by"):
            ItemColumns(found.attributes, ("a",), found.unread).values("price")
        with pytest.raises(FilterError, match="did you mean 'price'"):
            ItemColumns(found.attributes, ("a",), found.unread).values("prise")
    whole = Catalogue.of(facts)
    assert Catalogue.of(whole, {"category"}) is whole


def test_a_recommender_reads_what_rules_titles_and_filters_ask_for(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text(
        "item_id,a,b,c,d,e,f,name,price,title,text\n"
        + "".join(f"{item},1,true,x,2,3,u,N,{number},T,long\n" for number, item in enumerate(ITEMS))
    )
    (tmp_path / "rules.toml").write_text(
        'show = "a == 1"\n[[boost]]\nwhere = "b"\nfactor = 2\n[caps]\nc = 9\n[rebuy]\ncolumn = "d"\n'
        '[diversity]\nweight = 0.5\ncolumns = ["e", "f"]\n'
    )
    read, _ = read_shop_rules(tmp_path / "items.csv", tmp_path / "rules.toml", ["price"])
    assert read is not None
    assert set(read.attributes[ITEMS[0]]) == {*"abcdef", "name", "price", "title"}
    assert read.unread == {"text"}
    for load in (Recommender.load, ReloadingRecommender):
        narrow = load(bundles(), catalogue=tmp_path / "items.csv", filter_by=["price"])
        answer = narrow.recommend(Request(session=[ITEMS[1]], where="price < 3"))
        assert set(answer.items) <= set(ITEMS[:3])
        with pytest.raises(FilterError, match="'text' was not read"):
            narrow.recommend(Request(session=[ITEMS[1]], where="text == 'long'"))
        with pytest.raises(ConfigError, match=r"filter_by: items have no attribute 'prize'.*'price'"):
            load(bundles(), catalogue=tmp_path / "items.csv", filter_by=["prize"])
        with pytest.raises(TypeError, match="collection of names"):
            load(bundles(), catalogue=tmp_path / "items.csv", filter_by="price")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("item_id,sensitive,sensitive\ni,true,\n", "'sensitive' stands twice"),
        ("item_id,Sensitive\ni,true\n", "'Sensitive' must be called sensitive"),
        ("item_id, sensitive\ni,true\n", "' sensitive' must be called sensitive"),
        ("item_id,\uff53ensitive\ni,true\n", "must be called sensitive"),
        ("item_id,AVAILABLE\ni,false\n", "must be called available"),
        ("item_id,available,sensitive\ni,true\n", "line 2 has 2 cells, the header 3"),
        ("item_id,sensitive\ni,,true\n", "line 2 has 3 cells, the header 2"),
        ('item_id,sensitive\n"i,true\nj,true\n', "unexpected end of data"),
        ('item_id,sensitive\n"i"x,true\n', "expected after"),
        ("item_id," + ",".join(map(str, range(10_000))) + "\n", "10001 columns; at most 10000"),
        ("item_id\n" + "x" * 2_000_000 + "\n", "longer than 1048576 characters"),
        ("item_id\n" + "x" * 200_000 + "\n", "field larger than field limit"),
    ],
)
def test_a_table_that_could_hide_a_flag_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "items.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        Catalogue.of(tmp_path / "items.csv")


def test_a_byte_order_mark_and_mixed_ends_of_lines_hide_no_flag(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes(b"\xef\xbb\xbfitem_id,sensitive\r\na,true\nb,false\r\n\n")
    found = Catalogue.of(tmp_path / "items.csv")
    assert (found.sensitive, found.available) == ({"a"}, {"b"})


def test_a_flag_stands_twice_in_no_parquet_file_either(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array([True]), pa.array([False])]
    pq.write_table(pa.table(columns, ["item_id", "sensitive", "sensitive"]), tmp_path / "items.parquet")
    with pytest.raises(DataError, match="'sensitive' stands twice"):
        Catalogue.of(tmp_path / "items.parquet")
