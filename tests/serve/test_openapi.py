"""The OpenAPI document: what stands in a URL is no body."""

from __future__ import annotations

from herder.serve.dialects import openai_responses
from herder.serve.openapi import describe


def test_the_fields_of_a_url_are_its_parameters() -> None:
    paths = describe([openai_responses], "1")["paths"]
    listing = paths["/v1/responses/{response_id}/input_items"]["get"]
    assert "requestBody" not in listing
    found = {one["name"]: one for one in listing["parameters"]}
    assert found["response_id"]["in"] == "path" and found["limit"]["in"] == "query"
    assert found["limit"]["x-herder-status"] == "supported" and "1 to 100" in found["limit"]["description"]
    created = paths["/v1/responses"]["post"]
    assert created["summary"] == "Answers, and stores the answer"
    schema = created["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["background"]["x-herder-status"] == "refused"
