"""Conversation memory: which turns go into the prompt under a budget of tokens, and a chat that carries its KV cache over."""

import importlib

_HOMES = {
    "Ablation": "ablation",
    "BM25": "lexical",
    "ChatSession": "chat",
    "CheckpointError": "checkpoint",
    "Deadline": "deadline",
    "Dialogue": "dialogue",
    "Full": "recency",
    "Hosted": "hosted",
    "HostedError": "hosted",
    "Hybrid": "hybrid",
    "Importance": "importance",
    "Meeting": "meeting",
    "Memory": "memory",
    "MiniLM": "encoders",
    "Question": "question",
    "QuestionLogProb": "ablation",
    "Random": "recency",
    "RollingSummary": "summary",
    "Semantic": "semantic",
    "Sliding": "recency",
    "Span": "span",
    "Stats": "state",
    "SummaryCounts": "summary",
    "TokenEmbeddings": "encoders",
    "answered": "question",
    "dialogues": "dialogue",
    "evidence_recall": "evidence",
    "kept_turns": "evidence",
    "load_dialogue": "dialogue",
    "meetings": "meeting",
    "opening": "span",
    "prompt": "span",
    "replies": "asking",
    "spans": "span",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; dir({__name__}) lists its names")


def __dir__() -> list[str]:
    return sorted({*_HOMES, "__doc__"})
