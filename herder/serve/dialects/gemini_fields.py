"""Every field of Gemini's API for text, tokens and embeddings, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from herder.serve.fields import LOOSE, Field, Table, refused, supported, translated

MAX_CONTENTS = 4096
MAX_PARTS = 4096
MAX_TOOLS = 512
MAX_STOPS = 64
MAX_CANDIDATES = 8
MAX_LOGPROBS = 20
MAX_EMBEDDINGS = 2048

_UNHEARD = "no model here hears, speaks or draws: answers are text"
_NO_SERVER_TOOLS = "there are no server tools: declare functions of your own"
_ENTERPRISE = "it belongs to another of the vendor's services: leave it out"
_ONLY_TEXT = "a system instruction is text"


def camel(name: str) -> str:
    """A field's name as the tables have it: the API takes max_output_tokens for maxOutputTokens too."""
    return re.sub(r"(?<=[a-z0-9])_([a-z0-9])", lambda found: found[1].upper(), name)


def _all_refused(path: str, note: str, names: str) -> Iterable[Field]:
    return (refused(path + name, note) for name in names.split())


_PART_METADATA = (
    "audioMetadata audioTranscription documentMetadata mediaProcessing speechMetadata spreadsheetMetadata videoMetadata"
)
_SERVER_PARTS = "codeExecutionResult executableCode toolCall toolResponse"

_CONTENTS: tuple[Field, ...] = (
    supported("contents", f"at most {MAX_CONTENTS}"),
    supported("contents[].role", "user, which is also meant where it is missing; model; function or tool for results"),
    supported("contents[].parts"),
    supported("contents[].parts[].text", "texts of one turn that are parts of their own are joined by line breaks"),
    supported("contents[].parts[].inlineData", "an image"),
    supported("contents[].parts[].inlineData.mimeType"),
    supported("contents[].parts[].inlineData.data", "base64"),
    translated("contents[].parts[].inlineData.displayName", "a label; the model does not see it"),
    supported("contents[].parts[].functionCall", "of the model"),
    supported("contents[].parts[].functionCall.id"),
    supported("contents[].parts[].functionCall.name"),
    supported("contents[].parts[].functionCall.args"),
    refused("contents[].parts[].functionCall.partialArgs", "send the whole call", []),
    refused("contents[].parts[].functionCall.willContinue", "send the whole call", False),
    supported("contents[].parts[].functionResponse"),
    supported("contents[].parts[].functionResponse.id"),
    supported("contents[].parts[].functionResponse.name"),
    supported("contents[].parts[].functionResponse.response", "the model sees its JSON"),
    refused("contents[].parts[].functionResponse.parts", "send images as parts of their own", []),
    refused("contents[].parts[].functionResponse.willContinue", "send the whole response", False),
    refused("contents[].parts[].functionResponse.scheduling", "the model answers when it is asked"),
    supported("contents[].parts[].thought", "of the model, for formats that have a place for it"),
    refused("contents[].parts[].thoughtSignature", "it is for the server that made it: leave it out"),
    supported("contents[].parts[].fileData", "an image"),
    supported(
        "contents[].parts[].fileData.fileUri",
        "a URL of a host from which the server's configuration lets it fetch images, by default none; no files are "
        "stored",
    ),
    supported("contents[].parts[].fileData.mimeType"),
    translated("contents[].parts[].fileData.displayName", "a label; the model does not see it"),
    refused("contents[].parts[].mediaResolution", "images are cut as the model was trained"),
    translated("contents[].parts[].partMetadata", "a label; the model does not see it"),
    *_all_refused("contents[].parts[].", _UNHEARD, _PART_METADATA),
    *_all_refused("contents[].parts[].", _NO_SERVER_TOOLS, _SERVER_PARTS),
)

_SYSTEM: tuple[Field, ...] = (
    supported("systemInstruction"),
    translated("systemInstruction.role", "any; it is the system's"),
    supported("systemInstruction.parts"),
    supported("systemInstruction.parts[].text", "texts that are parts of their own are joined by line breaks"),
    translated("systemInstruction.parts[].partMetadata", "a label; the model does not see it"),
    *_all_refused("systemInstruction.parts[].", _ONLY_TEXT, f"{_PART_METADATA} {_SERVER_PARTS}"),
    *_all_refused(
        "systemInstruction.parts[].",
        _ONLY_TEXT,
        "fileData functionCall functionResponse inlineData mediaResolution thought thoughtSignature",
    ),
)

_TOOLS: tuple[Field, ...] = (
    supported("tools"),
    supported("tools[].functionDeclarations", f"at most {MAX_TOOLS}"),
    supported("tools[].functionDeclarations[].name"),
    supported("tools[].functionDeclarations[].description"),
    translated("tools[].functionDeclarations[].parameters", "as JSON Schema"),
    supported("tools[].functionDeclarations[].parametersJsonSchema", LOOSE),
    translated("tools[].functionDeclarations[].response", "as JSON Schema, the function's `return`"),
    translated("tools[].functionDeclarations[].responseJsonSchema", "the function's `return`"),
    refused("tools[].functionDeclarations[].behavior", "calls wait for their responses", "BLOCKING", "UNSPECIFIED"),
    *_all_refused(
        "tools[].",
        _NO_SERVER_TOOLS,
        "retrieval computerUse fileSearch googleSearch googleMaps codeExecution enterpriseWebSearch "
        "googleSearchRetrieval parallelAiSearch urlContext mcpServers exaAiSearch",
    ),
    supported("toolConfig"),
    supported("toolConfig.functionCallingConfig"),
    translated(
        "toolConfig.functionCallingConfig.mode",
        "AUTO, ANY, NONE; VALIDATED is AUTO: arguments always follow their schema",
    ),
    translated(
        "toolConfig.functionCallingConfig.allowedFunctionNames", "the model is shown the allowed functions only"
    ),
    refused(
        "toolConfig.functionCallingConfig.streamFunctionCallArguments", "a stream has whole calls, as parts", False
    ),
    refused("toolConfig.retrievalConfig", _NO_SERVER_TOOLS, {}),
    refused("toolConfig.includeServerSideToolInvocations", _NO_SERVER_TOOLS, False),
)

_GENERATION: tuple[Field, ...] = (
    supported("generationConfig"),
    supported("generationConfig.temperature", "0 to 2; 0 is greedy"),
    supported("generationConfig.topP"),
    supported("generationConfig.topK", "0: off"),
    supported("generationConfig.candidateCount", f"at most {MAX_CANDIDATES}"),
    supported("generationConfig.maxOutputTokens", "default: until the model stops or the context is full"),
    supported("generationConfig.stopSequences", f"at most {MAX_STOPS}"),
    supported("generationConfig.seed"),
    supported("generationConfig.presencePenalty"),
    supported("generationConfig.frequencyPenalty"),
    supported("generationConfig.responseLogprobs"),
    supported("generationConfig.logprobs", f"0 to {MAX_LOGPROBS}, with responseLogprobs"),
    supported(
        "generationConfig.responseMimeType", "text/plain, application/json (any object without a schema), text/x.enum"
    ),
    translated("generationConfig.responseSchema", "as JSON Schema; one that cannot be enforced is an error"),
    supported("generationConfig.responseJsonSchema", "one that cannot be enforced is an error"),
    supported("generationConfig.thinkingConfig"),
    supported("generationConfig.thinkingConfig.includeThoughts", "default: reasoning is left out of the answer"),
    translated(
        "generationConfig.thinkingConfig.thinkingBudget",
        "-1, or 0: reasoning is left out, though the model may reason all the same; reasoning has no limit of its own",
    ),
    refused(
        "generationConfig.thinkingConfig.thinkingLevel", "these models have no levels", "THINKING_LEVEL_UNSPECIFIED"
    ),
    refused("generationConfig.responseModalities", _UNHEARD, ["TEXT"], ["text"], []),
    refused(
        "generationConfig.mediaResolution", "images are cut as the model was trained", "MEDIA_RESOLUTION_UNSPECIFIED"
    ),
    refused("generationConfig.responseFormat", "use responseMimeType and responseSchema"),
    refused("generationConfig.enableEnhancedCivicAnswers", "there is no such thing here", False),
    refused("generationConfig.enableAffectiveDialog", _UNHEARD, False),
    refused("generationConfig.audioTimestamp", _UNHEARD, False),
    *_all_refused("generationConfig.", _UNHEARD, "speechConfig imageConfig audioTranscriptionConfig translationConfig"),
    refused("generationConfig.routingConfig", "name the model that is to answer"),
    refused("generationConfig.modelSelectionConfig", "name the model that is to answer"),
)

_REST: tuple[Field, ...] = (
    supported("safetySettings", "nothing is filtered, so a threshold that filters is refused"),
    supported("safetySettings[].category"),
    supported("safetySettings[].threshold", "BLOCK_NONE, OFF"),
    refused("safetySettings[].method", _ENTERPRISE),
    refused("cachedContent", "prefixes are cached by themselves: send the content"),
    translated("serviceTier", "unspecified, standard: all requests have one tier"),
    refused("store", "nothing is stored", False),
    refused("continuationToken", "ask again with the answer so far"),
    refused("labels", _ENTERPRISE, {}),
    refused("modelArmorConfig", _ENTERPRISE),
    refused("generationOutputConfig", _ENTERPRISE),
)

_MODEL = translated("model", "the name in the path counts")

GENERATE = Table(
    "POST /v1beta/models/{model}:generateContent",
    "google.genai.types.GenerateContentConfig",
    (_MODEL, *_CONTENTS, *_SYSTEM, *_TOOLS, *_GENERATION, *_REST),
    (
        supported("deadline", "Herder's own: seconds after which the answer ends with what there is"),
        translated("truncatePromptTokens", "-1: a prompt over the window loses its oldest part, and a header says so"),
    ),
)
STREAM = replace(GENERATE, request="POST /v1beta/models/{model}:streamGenerateContent")
COUNT_TOKENS = Table(
    "POST /v1beta/models/{model}:countTokens",
    "google.genai.types.CountTokensConfig",
    (
        *_CONTENTS,
        *_SYSTEM,
        *_TOOLS,
        translated("generationConfig", "changes no count; checked as in generateContent"),
        supported("generateContentRequest", "a whole request to generateContent, instead of the others"),
    ),
)

_TASK = "embeddings here are of no task"
EMBED = Table(
    "POST /v1beta/models/{model}:embedContent",
    "google.genai.types.EmbedContentConfig",
    (
        _MODEL,
        supported("content"),
        translated("content.role", "any"),
        supported("content.parts"),
        supported("content.parts[].text", "texts that are parts of their own are joined by line breaks"),
        translated("content.parts[].partMetadata", "a label"),
        *_all_refused("content.parts[].", "only text is embedded", f"{_PART_METADATA} {_SERVER_PARTS}"),
        *_all_refused(
            "content.parts[].",
            "only text is embedded",
            "fileData functionCall functionResponse inlineData mediaResolution thought thoughtSignature",
        ),
        supported("outputDimensionality", "the first values of the vector, made one long again"),
        refused("taskType", _TASK, "TASK_TYPE_UNSPECIFIED"),
        refused("title", _TASK),
        refused("autoTruncate", "shorten the text", False),
        refused("mimeType", "only text is embedded", "text/plain"),
        refused("documentOcr", "only text is embedded", False),
        refused("audioTrackExtraction", "only text is embedded", False),
    ),
)
BATCH_EMBED = Table(
    "POST /v1beta/models/{model}:batchEmbedContents",
    "google.genai.types.EmbedContentConfig",
    (supported("requests", f"at most {MAX_EMBEDDINGS}, each as of :embedContent and of one outputDimensionality"),),
)
