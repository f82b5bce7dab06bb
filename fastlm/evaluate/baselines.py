"""Baselines of fine-tuning that need no neural network: what a model of these examples should beat.

| kind | the baseline without the text | the baseline with a bag of words |
|---|---|---|
| classification | the most frequent class | tf-idf of words and pairs of words, logistic regression |
| regression | the mean | pairs: the cosine of the tf-idf vectors, fitted by a line; texts: tf-idf, ridge regression |
| choice | the most frequent index | the choice that a classifier of pairs (context, choice) finds best |
| span | the most frequent answer | the sentence whose tf-idf vector is closest to that of the question |
| tagging | the most frequent tag | the most frequent tag of each word |

For choices, "tf-idf" alone is the choice whose vector is closest to that of context and question.

All are fitted on the training examples alone. They need scikit-learn, the extra `finetune`, except for tagging.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fastlm.data.labelled.examples import ChoiceExample, Kind, SpanExample, TaggedExample, TextExample
from fastlm.data.sentences import split_sentences
from fastlm.evaluate.scores import library, score_all, targets
from fastlm.evaluate.squad import texts

_REGRESSION = "tf-idf + logistic regression"
_WORDS = r"\w+|[^\w\s]"  # scikit-learn's own pattern drops single letters and punctuation, which may decide


def baseline_scores(
    kind: Kind, names: Sequence[str], train: Sequence[Any], test: Sequence[Any], labels: Sequence[str] | None
) -> dict[str, dict[str, float]]:
    """Returns {baseline: {score: value}}, with the scores `names` of SCORES on the `test` examples.

    labels: the names of the classes, in their order. All examples have labels. Raises ValueError without examples.
    """
    if not train:
        raise ValueError("train: at least one example expected, got none")
    gold = targets(test, labels)
    predictions = predict_baselines(kind, train, test, labels)
    return {baseline: score_all(names, gold, predicted) for baseline, predicted in predictions.items()}


def predict_baselines(
    kind: Kind, train: Sequence[Any], test: Sequence[Any], labels: Sequence[str] | None
) -> dict[str, list[Any]]:
    """Returns {baseline: its predictions for `test`}, as the functions of SCORES take them."""
    if kind == "tagging":
        return _tags(train, test)
    gold = targets(train, labels)
    if kind == "regression":
        mean = sum(gold) / len(gold)
        return {"mean": [mean] * len(test), "tf-idf": _regress(train, gold, test)}
    if kind == "span":
        answer = most_frequent(answer for example in train for answer in texts(example)[:1] or ("",))
        return {"majority": [answer] * len(test), "tf-idf": _closest_sentences(train, test)}
    majority = [most_frequent(gold)] * len(test)
    if kind == "choice":
        return {
            "majority": majority,
            "tf-idf": _closest_choices(train, test),
            _REGRESSION: _choose(train, gold, test),
        }
    return {"majority": majority, _REGRESSION: _classify(train, gold, test)}


def most_frequent(values: Iterable[Any]) -> Any:
    """Returns the most frequent value, the smallest one on a tie."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _classify(train: Sequence[TextExample], gold: Sequence[int], test: Sequence[TextExample]) -> list[int]:
    if len(set(gold)) == 1:
        return [gold[0]] * len(test)
    vectors, model = _logistic_regression(train, gold)
    return model.predict(_features(vectors, test)).tolist()


def _choose(train: Sequence[ChoiceExample], gold: Sequence[int], test: Sequence[ChoiceExample]) -> list[int]:
    """Returns the choice that is likeliest to be right, by a classifier of pairs of context and choice."""
    right = [int(i == label) for example, label in zip(train, gold, strict=True) for i in range(len(example.choices))]
    vectors, model = _logistic_regression(_pairs(train), right)
    logits = iter(model.decision_function(_features(vectors, _pairs(test))).tolist())
    return [int(np.argmax([next(logits) for _ in example.choices])) for example in test]


def _pairs(examples: Sequence[ChoiceExample]) -> list[TextExample]:
    return [
        TextExample(example.id, f"{example.context} {example.question}", choice, None, example.where)
        for example in examples
        for choice in example.choices
    ]


def _logistic_regression(train: Sequence[TextExample], gold: Sequence[int]) -> tuple[Any, Any]:
    """Returns the fitted vectorizer and classifier."""
    vectors = _fitted_to_texts(train)
    model = library("sklearn.linear_model").LogisticRegression(max_iter=1000)
    return vectors, model.fit(_features(vectors, train), gold)


def _features(vectors: Any, examples: Sequence[TextExample]) -> Any:
    """Returns the tf-idf of the text; for pairs also that of the pair, and their product, which shows common words."""
    first = vectors.transform([example.text for example in examples])
    if examples[0].pair is None:
        return first
    second = vectors.transform([example.pair for example in examples])
    return library("scipy.sparse").hstack([first, second, first.multiply(second)]).tocsr()


def _regress(train: Sequence[TextExample], gold: Sequence[float], test: Sequence[TextExample]) -> list[float]:
    vectors = _fitted_to_texts(train)
    models = library("sklearn.linear_model")
    if train[0].pair is None:
        model = models.Ridge().fit(_features(vectors, train), gold)
        return model.predict(_features(vectors, test)).tolist()
    model = models.LinearRegression().fit(_cosines(vectors, train), gold)
    return model.predict(_cosines(vectors, test)).tolist()


def _cosines(vectors: Any, examples: Sequence[TextExample]) -> Any:
    """Returns the cosine of both texts of each example, (examples, 1)."""
    first, second = (vectors.transform([example[side] for example in examples]) for side in (1, 2))
    return np.asarray(first.multiply(second).sum(axis=1)).reshape(-1, 1)  # the vectors have length 1


def _closest_choices(train: Sequence[ChoiceExample], test: Sequence[ChoiceExample]) -> list[int]:
    vectors = _fitted(text for example in train for text in (example.context, example.question, *example.choices))
    return [_closest(vectors, f"{example.context} {example.question}", example.choices) for example in test]


def _closest_sentences(train: Sequence[SpanExample], test: Sequence[SpanExample]) -> list[str]:
    vectors = _fitted(text for example in train for text in (example.question, example.context))
    found = []
    for example in test:
        sentences = [sentence for line in example.context.splitlines() for sentence in split_sentences(line)] or [""]
        found.append(sentences[_closest(vectors, example.question, sentences)])
    return found


def _closest(vectors: Any, text: str, candidates: Sequence[str]) -> int:
    """Returns the index of the candidate with the greatest cosine, the first one on a tie."""
    return int((vectors.transform(candidates) @ vectors.transform([text]).T).toarray().argmax())


def _fitted_to_texts(train: Sequence[TextExample]) -> Any:
    return _fitted(text for example in train for text in (example.text, example.pair) if text is not None)


def _fitted(train: Iterable[str]) -> Any:
    """Returns a vectorizer whose words and idf are those of the training texts."""
    vectorizer = library("sklearn.feature_extraction.text").TfidfVectorizer
    return vectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=_WORDS).fit(train)


def _tags(train: Sequence[TaggedExample], test: Sequence[TaggedExample]) -> dict[str, list[Any]]:
    of_word: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        for word, tag in zip(example.words, example.tags, strict=True):
            of_word[word][tag] += 1
    majority = most_frequent(tag for example in train for tag in example.tags)
    best = {word: most_frequent(tags.elements()) for word, tags in of_word.items()}
    return {
        "majority": [[majority] * len(example.words) for example in test],
        "tag of each word": [[best.get(word, majority) for word in example.words] for example in test],
    }
