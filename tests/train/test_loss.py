"""The loss equals transformers' for the same choice of frames; other frames do not contribute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.parity import prompt
from helpers.tiny import AUDIO, AUDIO_EOS, EOS, Shape, random_csm
from torch import Tensor
from transformers import CsmForConditionalGeneration

from csm_cli.train.batches import IGNORE, Batch, LossMask, SequenceRow, apply_loss_mask, collate
from csm_cli.train.loss import LossModule

BACKBONE_ONLY = -101  # CsmProcessor's label of a frame trained in the backbone alone


@pytest.fixture(scope="module")
def model() -> CsmForConditionalGeneration:
    model = random_csm(Shape(codebooks=4))
    generator = torch.Generator().manual_seed(0)
    for name, buffer in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):  # transformers initializes them to zero: all audio would have the same codes
            buffer.normal_(generator=generator)
    return model


def conversation(model: CsmForConditionalGeneration, seed: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Ids [S], audio of each turn, and prompt rows [S, K + 1] of two spoken turns."""
    made = prompt(model, turns=2, seed=seed)
    last = int((made.ids == AUDIO_EOS).nonzero()[-1]) + 1  # without the text of the turn to be generated
    return made.ids[:last], made.audio, made.rows[:last]


def labels_of(ids: Tensor, seed: int) -> Tensor:
    """What CsmProcessor(output_labels=True, depth_decoder_labels_ratio=...) makes of ids [S]."""
    random = np.random.default_rng(seed)
    labels = torch.where((ids == AUDIO) | (ids == AUDIO_EOS), ids, IGNORE)
    frames = (ids == AUDIO).nonzero()[:, 0].numpy()
    labels[random.permutation(frames)[: len(frames) * 3 // 4]] = BACKBONE_ONLY
    return labels


def row(rows: Tensor, labels: Tensor) -> SequenceRow:
    """Our row of prompt rows [S, K + 1] with those labels [S]."""
    codes, text = rows[:, :-1].numpy(), rows[:, -1].numpy()
    is_text = text >= 0
    wanted = np.where(is_text[:, None] | (labels.numpy() == IGNORE)[:, None], IGNORE, codes)
    wanted[labels.numpy() == BACKBONE_ONLY, 1:] = IGNORE
    weights = np.ones(len(text), np.float32)
    return SequenceRow(np.where(is_text, text, 0), is_text, np.where(is_text[:, None], 0, codes), wanted, weights)


def ours(model: CsmForConditionalGeneration, batch: Batch) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        sums = LossModule(model)(batch).sums()
    means = sums / batch.target_counts()
    return means[0].float(), means[1].float()


def theirs(model: CsmForConditionalGeneration, seeds: list[int]) -> tuple[object, list[SequenceRow]]:
    """transformers' output for a batch padded behind, and our rows of it."""
    parts = [conversation(model, seed) for seed in seeds]
    labels = [labels_of(ids, seed) for (ids, _, _), seed in zip(parts, seeds, strict=True)]
    longest = max(len(ids) for ids, _, _ in parts)

    def padded(each: Tensor, fill: int) -> Tensor:
        return torch.nn.functional.pad(each, (0, longest - len(each)), value=fill)

    audio = [torch.cat(each) for _, each, _ in parts]
    values = torch.stack([torch.nn.functional.pad(a, (0, max(map(len, audio)) - len(a))) for a in audio])
    cutoffs = torch.stack([torch.tensor([len(a) for a in each]).cumsum(0) for _, each, _ in parts])
    with torch.no_grad():
        found = model(
            input_ids=torch.stack([padded(ids, EOS) for ids, _, _ in parts]),
            attention_mask=torch.stack([padded(torch.ones_like(ids), 0) for ids, _, _ in parts]),
            input_values=values[:, None],
            input_values_cutoffs=cutoffs,
            labels=torch.stack([padded(each, IGNORE) for each in labels]),
        )
    return found, [row(rows, each) for (_, _, rows), each in zip(parts, labels, strict=True)]


@pytest.mark.parametrize("seed", range(20))
def test_loss_equals_transformers(model: CsmForConditionalGeneration, seed: int) -> None:
    found, rows = theirs(model, [10 * seed + index for index in range(1 + seed % 3)])
    backbone, depth = ours(model, collate(rows))
    torch.testing.assert_close(backbone, found.backbone_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(depth, found.depth_decoder_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone + depth, found.loss, rtol=1e-5, atol=1e-5)


def test_context_is_not_in_the_loss(model: CsmForConditionalGeneration) -> None:
    """transformers trains on every frame of its audio inputs, whatever the labels; with [B, S, K] it does not."""
    ids, _, rows = conversation(model, 1)
    second = int((ids == AUDIO_EOS).nonzero()[0]) + 1
    labels = torch.where((ids == AUDIO) | (ids == AUDIO_EOS), ids, IGNORE)
    labels[:second] = IGNORE
    mine = collate([row(rows, labels)])
    with torch.no_grad():
        text = model.embed_text_tokens(mine.text_ids)
        inputs = torch.where(mine.is_text[..., None], text, model.backbone_model.embed_tokens(mine.codes))
        found = model(inputs_embeds=inputs, labels=mine.labels)
    backbone, depth = ours(model, mine)
    torch.testing.assert_close(backbone, found.backbone_loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(depth, found.depth_decoder_loss, rtol=1e-5, atol=1e-5)


def test_frame_weights(model: CsmForConditionalGeneration) -> None:
    ids, _, rows = conversation(model, 2)
    plain = row(rows, labels_of(ids, 2))
    doubled = SequenceRow(**{**vars(plain), "weights": plain.weights * 2})
    torch.testing.assert_close(ours(model, collate([plain])), ours(model, collate([doubled])))
    only_last = SequenceRow(**{**vars(plain), "weights": np.eye(len(plain), dtype=np.float32)[-1]})
    found = LossModule(model)(collate([plain]))
    torch.testing.assert_close(ours(model, collate([only_last]))[0], found.backbone[-1].detach())


def test_loss_mask_selects_its_share_and_all_end_frames(model: CsmForConditionalGeneration) -> None:
    ids, _, rows = conversation(model, 3)
    whole = row(rows, torch.where((ids == AUDIO) | (ids == AUDIO_EOS), ids, IGNORE))
    random = np.random.default_rng(0)
    taken = [
        apply_loss_mask(whole, LossMask(depth_frame_share=0.25), random).labels[:, 1] != IGNORE for _ in range(400)
    ]
    frames = (ids == AUDIO).numpy()
    assert np.mean([each[frames].mean() for each in taken]) == pytest.approx(0.25, abs=0.02)
    assert all(each[(ids == AUDIO_EOS).numpy()].all() for each in taken)
    assert (apply_loss_mask(whole, LossMask(), random).labels[:, 0] == whole.labels[:, 0]).all()


def test_token_corruption_changes_inputs_only(model: CsmForConditionalGeneration) -> None:
    ids, _, rows = conversation(model, 4)
    whole = row(rows, torch.where((ids == AUDIO) | (ids == AUDIO_EOS), ids, IGNORE))
    found = apply_loss_mask(
        whole, LossMask(depth_frame_share=1.0, token_corruption=1.0, codebook_size=64), np.random.default_rng(0)
    )
    assert (found.labels == whole.labels).all()
    frames, ends = (ids == AUDIO).numpy(), (ids == AUDIO_EOS).numpy()
    assert (found.codes[frames] != whole.codes[frames]).mean() > 0.9 and not found.codes[ends].any()


def test_non_finite_loss_names_its_row(model: CsmForConditionalGeneration) -> None:
    broken = random_csm(Shape(codebooks=4))
    ids, _, rows = conversation(broken, 5)
    good = row(rows, labels_of(ids, 5))
    text = good.text_ids.copy()
    text[0] = 7
    with torch.no_grad():
        broken.embed_text_tokens.weight[7] = torch.nan
    bad = SequenceRow(**{**vars(good), "text_ids": text})
    clean = SequenceRow(**{**vars(good), "text_ids": np.where(good.text_ids == 7, 8, good.text_ids)})
    assert LossModule(broken)(collate([clean, bad, clean])).non_finite_rows() == [1]
