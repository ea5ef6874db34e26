"""Pydantic models in contracts: documents describe what is published, and changes are found."""

import json
import subprocess
import sys
from typing import Annotated, Literal

import jsonschema
import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, computed_field, create_model

from eventbus import ClientEvent, Event, ShouldBroadcast
from eventbus.contracts import asyncapi, typescript
from eventbus.contracts.catalogue import catalogue
from eventbus.contracts.difference import BOTH, NOBODY, READERS, WRITERS, differences
from eventbus.contracts.jsonschema import document, schemas_of
from eventbus.contracts.lock import encode_lock, lock_of
from eventbus.events.encoding import messages_of
from eventbus.messages import decodable
from eventbus_edge.sessions.client_events import ClientEvents


class Cat(BaseModel):
    """A cat."""

    kind: Literal["cat"] = "cat"
    lives: int = Field(ge=0, le=9, description="How many are left.")

    @computed_field
    @property
    def is_new(self) -> bool:
        return self.lives == 9


class Dog(BaseModel):
    model_config = ConfigDict(extra="allow")

    kind: Literal["dog"] = "dog"
    full_name: str = Field(alias="fullName")
    friends: "list[Dog]" = []


class Tags(RootModel[dict[str, tuple[int, str]]]):
    pass


class Holder(msgspec.Struct):
    cat: Cat


def struct_named(name):
    return msgspec.defstruct(name, [("number", int)])


class Adopted(Event, ShouldBroadcast, channel="pets.{pet_id}", name="contract.adopted"):
    pet_id: int
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    others: list[Cat | Dog | int]
    holder: Holder
    same_name: struct_named("Cat")
    tags: Tags = msgspec.field(default_factory=lambda: Tags({}))
    note: Cat | None = None


class Petted(Event, ClientEvent, channel="pets.{pet_id}", name="petted"):
    pet: Cat


EVENT = Adopted(
    1,
    Dog(fullName="Rex", friends=[Dog(fullName="Max")], age=3),
    [Cat(lives=9), 5, Dog(fullName="Rex")],
    Holder(Cat(lives=1)),
    Adopted.__annotations__["same_name"](4),
    Tags({"a": (1, "b")}),
)


@pytest.fixture
def found():
    return catalogue([Adopted, Petted])


def test_published_message_is_valid_and_a_changed_one_is_not(found):
    schema = document(found)
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    [message] = messages_of(EVENT)
    validator.validate(json.loads(message.encode()))
    for change in (
        {"pet": {"kind": "dog"}},
        {"pet": {"fullName": "Rex"}},
        {"others": ["text"]},
        {"holder": {"cat": {"lives": 10}}},
        {"tags": {"a": [1]}},
        {"note": 1},
    ):
        wrong = json.loads(message.encode())
        wrong["data"] |= change
        assert not validator.is_valid(wrong), change


def test_documents_are_deterministic_and_their_references_resolve(found):
    text = json.dumps(asyncapi.document(found))
    assert text == json.dumps(asyncapi.document(catalogue([Petted, Adopted])))
    assert encode_lock(lock_of(found)) == encode_lock(lock_of(catalogue([Petted, Adopted])))
    assert "#/models/" not in text
    names = asyncapi.document(found)["components"]["schemas"]
    assert {"Cat", "CatModel", "Dog", "Tags", "Holder", "Adopted", "Petted"} == names.keys()


def test_types_compile_and_each_mistake_is_found(found, tmp_path, tsc):
    (tmp_path / "events.ts").write_text(typescript.declarations(found))
    (tmp_path / "use.ts").write_text("""
import type { Adopted, CatModel, Dog, Tags } from "./events.js";
declare const event: Adopted;
const dog: Dog = { kind: "dog", fullName: "Rex", age: 3 };
const cat: CatModel = { kind: "cat", lives: 9 };
const tags: Tags = { a: [1, "b"] };
const shown: number | string = event.pet.kind === "cat" ? event.pet.lives : event.pet.fullName;
export { dog, cat, tags, shown };
const w1: Dog = { kind: "dog", full_name: "Rex" }; // wrong
const w2: CatModel = { kind: "dog", lives: 9 }; // wrong
const w3: Tags = { a: [1] }; // wrong
const w4: string = event.pet.fullName; // wrong
""")
    lines = (tmp_path / "use.ts").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("// wrong")}
    said = tsc("use.ts")
    assert {int(line.split("(")[1].split(",")[0]) for line in said.splitlines()
            if line.startswith("use.ts(")} == expected  # fmt: skip


def test_edge_checks_client_events_with_models(found):
    events = ClientEvents(asyncapi.document(found), strict=True)
    fault = events.fault
    assert fault("pets.1", "client-petted", b'{"pet":{"kind":"cat","lives":3}}') is None
    assert fault("pets.1", "client-petted", b'{"pet":{"kind":"cat","lives":"x"}}') is not None
    assert fault("pets.1", "client-petted", b'{"pet":{"kind":"dog"}}') is not None


def complete(type_):
    [schema], components = schemas_of([decodable(type_)])
    return schema | {"$defs": components}


def model(name="M", **fields):
    return create_model(name, **fields)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (model(a=(int, ...)), model(a=(int, ...)), NOBODY),
        (model(a=(int, ...)), model(a=(str, ...)), BOTH),
        (model(a=(int, ...)), model(a=(int, ...), b=(int, ...)), WRITERS),
        (model(a=(int, ...)), model(a=(int, ...), b=(int, 1)), NOBODY),
        (model(a=(int, ...), b=(int, ...)), model(a=(int, ...)), READERS),
        (model(a=(int, Field(le=5))), model(a=(int, Field(le=4))), WRITERS),
        (model(a=(Literal["x"], ...)), model(a=(Literal["x", "y"], ...)), READERS),
        (model(a=(int, ...)), model(a=(int, Field(alias="b"))), BOTH),
        (model(a=(list[int], ...)), model(a=(list[str], ...)), BOTH),
        (Cat | None, Cat, WRITERS),
        (Cat | Dog, Cat, WRITERS),
        (model("A", a=(int, ...)) | model("B", b=(int, ...)),
         model("A", a=(str, ...)) | model("B", b=(int, ...)), BOTH),
        (model("A", a=(int, ...)) | model("B", b=(int, ...)),
         model("A", a=(int, ...)) | model("B", b=(str, ...)), BOTH),
        (model(a=(list[int] | list[bool], ...)), model(a=(list[int] | list[str], ...)), BOTH),
        (model(a=(int, ...)), msgspec.defstruct("S", [("a", int)]), NOBODY),
    ],
)  # fmt: skip
def test_change_of_a_model_breaks_the_same_side_as_that_of_a_struct(old, new, expected):
    found = list(differences(complete(old), complete(new)))
    assert frozenset().union(*(each.breaks for each in found)) == expected, found


LATER = """
from __future__ import annotations
from pydantic import BaseModel
from eventbus import Event, ShouldBroadcast, ShouldQueue

class Early(BaseModel):
    later: Later

class Both(Event, ShouldBroadcast, channel="c"):
    early: Early
    several: list[Early | Later]

class Job(Event, ShouldQueue):
    several: list[Early | Later]

class Later(BaseModel):
    x: int
"""
USES = {
    "export": "typescript.declarations(catalogue()), lock_of(catalogue())",
    "dispatch": "encode_event(late.Both(late.Early(later=late.Later(x=1)), [late.Later(x=1)]))",
    "job": "encode_event(late.Job([late.Later(x=1)]))",
}


@pytest.mark.parametrize("use", USES)
def test_models_can_be_defined_after_the_events_that_name_them(tmp_path, use):
    (tmp_path / "late.py").write_text(LATER)
    code = (
        "import late\n"
        "from eventbus.contracts import typescript\n"
        "from eventbus.contracts.catalogue import catalogue\n"
        "from eventbus.contracts.lock import lock_of\n"
        "from eventbus.events.encoding import encode_event\n" + USES[use]
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=150, cwd=tmp_path)
