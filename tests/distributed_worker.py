"""Started by torchrun with two processes on CPU; what they found goes to a file for each rank."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.models.bert.modeling_bert import BertLayer
from transformers.trainer_callback import PrinterCallback

from hf_transfer_plugin import FreezingCallback, FrozenPrefixCache, GradualUnfreezing, LayerwiseDecay, attach
from hf_transfer_plugin.adapters import attach_adapter
from hf_transfer_plugin.callbacks import NonFiniteLossCallback
from hf_transfer_plugin.freezing import ever_learning_names, freeze_first, full, set_trainable
from hf_transfer_plugin.layers import beneath_adapters, discover_layer_groups
from hf_transfer_plugin.learning_rates import build_optimizer
from hf_transfer_plugin.schedules import ChainThaw, LayerSampling, LinearProbeThenFineTune, PlateauUnfreezing
from tests.conftest import bert, rows

STEPS = 8
STRATEGIES = {
    "gradual": GradualUnfreezing(),
    "chain": ChainThaw(),
    "lp-ft": LinearProbeThenFineTune(frozen=1),
    "plateau": PlateauUnfreezing(min_delta=0.05),
    "sampling": LayerSampling(active=1, every=2),
    "freeze-first": freeze_first(2),
}
CELLS = [
    (name, optim, accumulation, checkpointing)
    for name in STRATEGIES
    for optim, accumulation, checkpointing in (
        ("sgd", 1, False), ("sgd", 2, False), ("sgd", 1, True), ("sgd", 2, True), ("adamw_torch_fused", 2, True),
    )
]  # fmt: skip
ADAPTER_STRATEGIES = STRATEGIES | {"full": full()}
# Without dropout, as the model: one process draws other masks than two.
ADAPTERS = {
    "lora": {"name": "lora", "lora_dropout": 0.0},
    "upper": {"name": "lora", "lora_dropout": 0.0, "layers": 3, "also_train": ["norms"]},
    "adalora": {"name": "adalora", "lora_dropout": 0.0},
    "ia3": {"name": "ia3"},
    "p-tuning": {"name": "p-tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "writer": {"name": "adalora", "lora_dropout": 0.0},
}
ADAPTER_CELLS = [
    (adapter, strategy, optim, accumulation, checkpointing)
    for adapter, strategy in (
        ("lora", "full"), ("lora", "gradual"), ("upper", "sampling"), ("adalora", "full"), ("ia3", "full"),
        ("ia3", "gradual"), ("p-tuning", "full"), ("writer", "full"),
    )
    for optim, accumulation, checkpointing in (("sgd", 1, False), ("sgd", 2, True), ("adamw_torch_fused", 2, True))
]  # fmt: skip
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Weights(TrainerCallback):
    """The sum over all weights' bits after every step."""

    def __init__(self):
        self.sums = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        bits = [int(p.detach().view(torch.int32).sum(dtype=torch.int64)) for p in model.parameters()]
        self.sums.append([bits, sorted(n for n, p in model.named_parameters() if p.requires_grad)])


def make_trainer(folder, *, cell=CELLS[0], batch=8, callbacks=(), model=None, **changes):
    name, optim, accumulation, checkpointing = cell
    set_seed(0)
    arguments = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "activation_checkpointing": checkpointing,
        "optim": optim,
        "learning_rate": 1e-1 if optim == "sgd" else 1e-3,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    trainer = Trainer(
        model=model or bert(**STILL),
        args=TrainingArguments(**{**arguments, **changes}),
        train_dataset=rows(),
        eval_dataset=rows(8),
        callbacks=list(callbacks),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def attached(folder, cell=CELLS[0], rates=None, **kwargs):
    trainer = make_trainer(folder, cell=cell, **kwargs)
    attach(trainer, schedule=STRATEGIES[cell[0]], learning_rates=rates or LayerwiseDecay(0.8, warmup_steps=2))
    return trainer


def cells(out, rank):
    found = {}
    for cell in CELLS:
        watch = Weights()
        trainer = attached(out / "cell", cell, batch=4, callbacks=[watch])
        trainer.train()
        key = "-".join(map(str, cell))
        found[key] = {"sums": watch.sums, "norms": [e["grad_norm"] for e in trainer.state.log_history if "loss" in e]}
        if rank == 0:
            save_file(trainer.model.state_dict(), str(out / f"{key}.safetensors"))
    return found


def message(call):
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "no error"


def refusals(out, rank):
    checkpointed = ("gradual", "sgd", 1, True)
    reentrant = {"activation_checkpointing_kwargs": {"use_reentrant": True}}
    alone = [FreezingCallback(GradualUnfreezing())]
    return {
        "static graph": message(lambda: attached(out / "r", ddp_static_graph=True)),
        "unused": message(lambda: attached(out / "r", ddp_find_unused_parameters=False)),
        "reentrant": message(lambda: attached(out / "r", checkpointed, **reentrant)),
        "callback": message(lambda: make_trainer(out / "r", cell=checkpointed, callbacks=alone).train()),
        "fixed policy": message(
            lambda: attached(out / "r", ("freeze-first", "sgd", 1, True), ddp_find_unused_parameters=False).train()
        ),
    }


class Spoil(TrainerCallback):
    """Changes weights on one rank only."""

    def __init__(self, rank, step, spoil):
        self.rank, self.step, self.spoil = rank, step, spoil

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if self.rank == 1 and state.global_step == self.step:
            with torch.no_grad():
                self.spoil(model)


class Apart(GradualUnfreezing):
    """Says the same of itself on every process, and lets another group learn on each."""

    def __init__(self, rank):
        super().__init__()
        object.__setattr__(self, "rank", rank)

    def __call__(self, progress, groups):
        return (groups - 1 - self.rank,)


def disagreements(out, rank):
    def layer(model):
        model.bert.encoder.layer[1].output.dense.weight.mul_(1.001)

    def one_entry(model):
        model.bert.embeddings.word_embeddings.weight.view(-1)[37] += 1e-3

    def run(spoil, step, **changes):
        trainer = attached(out / f"d-{step}", batch=4, callbacks=[Spoil(rank, step, spoil)], **changes)
        return message(trainer.train)

    def blind():
        """A head that drops the count, met on one process by a batch whose loss is no number."""
        with pytest.MonkeyPatch.context() as patch:
            if rank:
                patch.setattr(torch.nn.CrossEntropyLoss, "forward", lambda *args: torch.tensor(float("nan")))
            return attached(out / "b", batch=4).model_accepts_loss_kwargs

    def not_a_number():
        real = torch.nn.CrossEntropyLoss.forward
        with pytest.MonkeyPatch.context() as patch:
            if rank:
                patch.setattr(torch.nn.CrossEntropyLoss, "forward", lambda *args: real(*args) * float("nan"))
            return message(make_trainer(out / "n", batch=4, callbacks=[NonFiniteLossCallback()]).train)

    return {
        "not a number": not_a_number(),
        "one blind": blind(),
        "at a thaw": run(layer, 2),
        "before a save": run(one_entry, 5, save_strategy="steps", save_steps=6),
        "not looked at": run(one_entry, 7),
    }


def apart(out, rank):
    """Runs that are not the same on both processes from the beginning."""

    def other(strategy):
        STRATEGIES["other"] = strategy
        return message(attached(out / "o", ("other", "sgd", 1, False), batch=4).train)

    def other_measure():
        trainer = make_trainer(out / "m", batch=4, metric_for_best_model="m", greater_is_better=True)
        trainer.compute_metrics = lambda prediction: {"m": float(trainer.state.global_step) if rank else 0.5}
        attach(trainer, schedule=PlateauUnfreezing())
        return message(trainer.train)

    return {
        "names": other(Apart(rank)),
        "schedule": other(GradualUnfreezing(every=2 + rank)),
        "rates": message(attached(out / "l", rates=LayerwiseDecay(0.8 + rank / 10), batch=4).train),
        "steps": message(attached(out / "s", max_steps=STEPS + rank, batch=4).train),
        "measure": other_measure(),
    }


def modalities(out, rank):
    """A model that only a real batch can tell about; the first batch of one process alone has an image."""
    set_seed(0)
    text = {**TEXT, "num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 0}
    vision = CLIPVisionConfig(**TEXT, num_hidden_layers=2, image_size=8, patch_size=4, projection_dim=16)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text, vocab_size=120), image_token_index=100)
    tokens, mask = torch.randint(3, 90, (8,)), torch.ones(8, dtype=torch.long)
    only_text = {"input_ids": tokens, "attention_mask": mask, "labels": tokens}
    image = {"input_ids": torch.cat([torch.full((4,), 100), tokens[4:]]), "pixel_values": torch.rand(3, 8, 8)}
    trainer = make_trainer(
        out / "v", model=LlavaForConditionalGeneration(config), batch=1, eval_strategy="no", max_steps=4,
        train_sampling_strategy="sequential", remove_unused_columns=False,
    )  # fmt: skip
    trainer.train_dataset = [{**only_text, **image}, only_text] * 8
    groups = attach(trainer, schedule=GradualUnfreezing(every=1))
    return {"groups": groups.names, "verified": groups.verified, "trained": message(trainer.train)}


def resume(out, rank):
    """Whole run, and a run resumed from its third checkpoint after its fifth lost a file."""
    folder = out / "resumed"
    changes = {"save_strategy": "steps", "save_steps": 1, "batch": 4}
    whole = attached(folder, **changes)
    whole.train()
    expected = {k: v.clone() for k, v in whole.model.state_dict().items()}
    torch.distributed.barrier()
    if rank == 0:
        for step in range(4, STEPS + 1):
            (folder / f"checkpoint-{step}" / "rng_state_1.pth").unlink()
    torch.distributed.barrier()
    again = attached(folder, **changes)
    untouched = sorted(path.name for path in folder.iterdir())
    torch.distributed.barrier()
    again.train(resume_from_checkpoint=True)
    same = all(torch.equal(v, expected[k]) for k, v in again.model.state_dict().items())
    torch.distributed.barrier()
    return {"same": same, "attached": untouched, "resumed": sorted(path.name for path in folder.iterdir())}


def adapted(adapter):
    set_seed(5)
    if adapter == "writer":
        writer = {**TEXT, "num_hidden_layers": 2, "num_key_value_heads": 2, "pad_token_id": 0, "vocab_size": 120}
        model = LlamaForCausalLM(LlamaConfig(**writer))
    else:
        model = bert(**STILL, num_hidden_layers=4)
    return attach_adapter(model, ADAPTERS[adapter])


def written(count=32):
    """Texts to write on, with widely differing numbers of targets."""
    found = rows(count)
    for i, row in enumerate(found):
        row["labels"] = row["input_ids"].clone()
        row["labels"][8 - i % 7 :] = -100
    return found


def attached_adapter(folder, cell, **kwargs):
    adapter, *cell = cell
    more = {"eval_strategy": "no"} if adapter == "writer" else {}
    trainer = make_trainer(folder, cell=cell, model=adapted(adapter), **more, **kwargs)
    if adapter == "writer":
        trainer.train_dataset = written()
    attach(trainer, schedule=ADAPTER_STRATEGIES[cell[0]], learning_rates=LayerwiseDecay(0.8, warmup_steps=2))
    return trainer


def adapters(out, rank):
    found = {}
    for cell in ADAPTER_CELLS:
        watch = Weights()
        trainer = attached_adapter(out / "cell", cell, batch=4, callbacks=[watch])
        trainer.train()
        key = "-".join(map(str, cell))
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        found[key] = {
            "sums": watch.sums,
            "norms": [entry["grad_norm"] for entry in history],
            "losses": [entry["loss"] for entry in history],
            "looks for unused": trainer.accelerator.ddp_handler.find_unused_parameters,
        }
        if rank == 0:
            # A model with prompts has its embeddings by two names.
            save_file({k: v.clone() for k, v in trainer.model.state_dict().items()}, str(out / f"{key}.safetensors"))
    return found


def unused(out, rank):
    """What DDP may be told about parameters without gradients."""

    def run(cell, **changes):
        watch = Weights()
        told = message(lambda: attached_adapter(out / "u", cell, batch=4, callbacks=[watch], **changes).train())
        return {"told": told, "sums": watch.sums}

    settled = {
        f"{adapter} {choice}": run((adapter, "full", "sgd", 2, True), ddp_find_unused_parameters=choice)
        for adapter in ("lora", "adalora", "ia3")
        for choice in (None, True, False)
    }
    changing = ("lora", "gradual", "sgd", 2, True)
    return {"settled": settled, "changing": run(changing, ddp_find_unused_parameters=False)["told"]}


def adapter_resume(out, rank):
    """Whole runs, and runs resumed from their third checkpoint after the file beside the fifth was lost."""
    found = {}
    for adapter, strategy in (("lora", "gradual"), ("adalora", "full"), ("p-tuning", "gradual")):
        cell, folder = (adapter, strategy, "adamw_torch_fused", 1, False), out / f"resumed-{adapter}"
        changes = {"save_strategy": "steps", "save_steps": 1, "batch": 4}
        whole = attached_adapter(folder, cell, **changes)
        whole.train()
        expected = {k: v.clone() for k, v in whole.model.state_dict().items()}
        torch.distributed.barrier()
        if rank == 0:
            beside = {"adalora": "rank_allocation", "p-tuning": "prompt_encoder", "lora": "adapter_model"}[adapter]
            for step in range(4, STEPS + 1):
                (folder / f"checkpoint-{step}" / f"{beside}.safetensors").unlink()
        torch.distributed.barrier()
        again = attached_adapter(folder, cell, **changes)
        again.train(resume_from_checkpoint=True)
        found[adapter] = {
            "same": all(torch.equal(v, expected[k]) for k, v in again.model.state_dict().items()),
            "aside": len(list(folder.glob("incomplete-*"))),
        }
        torch.distributed.barrier()
    return found


def cached(folder, strategy, cache, **changes):
    """A run that evaluates nothing; its frozen layers are in eval mode with a cache and without."""
    cell = ("cached", "sgd", 2, False)
    STRATEGIES["cached"] = strategy
    watch = Weights()
    trainer = make_trainer(folder, cell=cell, batch=4, callbacks=[watch], eval_strategy="no", **changes)
    attach(trainer, schedule=strategy, cache=cache)
    trainer.train()
    return watch.sums, {name: value.clone() for name, value in trainer.model.state_dict().items()}


def caching(out, rank):
    """Runs with the prefix cache beside those without."""
    found = {}
    strategies = {
        "frozen": freeze_first(2), "gradual": GradualUnfreezing(every=3), "lp-ft": LinearProbeThenFineTune(frozen=2),
        "chain": ChainThaw(),
    }  # fmt: skip
    for name, strategy in strategies.items():
        for fill in ("ahead", "first-epoch"):
            steps = 24 if name == "chain" else STEPS
            sums, live = cached(out / "live", strategy, None, max_steps=steps)
            cache = FrozenPrefixCache(out / f"{name}-{fill}", storage="float32", fill=fill, recheck_every=2)
            again, weights = cached(out / "cached", strategy, cache, max_steps=steps)
            found[f"{name} {fill}"] = {
                "report": {
                    k: cache.report[k] for k in ("used", "reason", "hits", "misses", "rows_filled", "rechecks")
                },
                "same": sums == again,
                "worst": max(float((weights[k] - live[k]).abs().max()) for k in live),
                "sums": again,
            }
    with pytest.MonkeyPatch.context() as patch:
        if rank:
            patch.setattr("hf_transfer_plugin.trainer.caching.probe_rows", lambda *args: [{"input_ids": 3}])
            patch.setattr("hf_transfer_plugin.trainer.caching.never_the_same", lambda *args: "rank 1 cannot")
        cache = FrozenPrefixCache(out / "refused", storage="float32")
        again, _ = cached(out / "refused", strategies["frozen"], cache)
    sums, _ = cached(out / "live", strategies["frozen"], None)
    found["one refuses"] = {"report": cache.report, "same": sums == again}
    (out / f"file-{rank}").write_text("no folder")
    closed = FrozenPrefixCache(out / ("closed" if rank else "file-0"), storage="float32")
    found["one cannot write"] = message(lambda: cached(out / "closed", strategies["frozen"], closed))
    return found


def ordered(out, rank):
    """Runs with rows sorted within each step beside those without: the rows each process saw, and what came of it."""
    found, weights = {}, {}
    for count in (40, 36):
        for sort in (False, True):
            watch, seen = Weights(), []
            changes = {"cell": ("full", "sgd", 2, False), "batch": 4, "eval_strategy": "no"}
            trainer = make_trainer(out / "order", callbacks=[watch], num_train_epochs=2, max_steps=-1, **changes)
            trainer.train_dataset = [
                {"input_ids": [3 + i] + [5] * (7 * i % 23), "attention_mask": [1] * (1 + 7 * i % 23), "labels": i % 2}
                for i in range(count)
            ]

            def collate(rows, seen=seen):
                seen.append([row["input_ids"][0] - 3 for row in rows])
                longest = max(len(row["input_ids"]) for row in rows)
                pad = lambda name: [row[name] + [0] * (longest - len(row[name])) for row in rows]
                batch = {name: torch.tensor(pad(name)) for name in ("input_ids", "attention_mask")}
                return {**batch, "labels": torch.tensor([row["labels"] for row in rows])}

            trainer.data_collator = collate
            attach(trainer, schedule=full(), sort_micro_batches=sort)
            seen.clear()
            trainer.train()
            weights[sort] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
            found[f"{count} {sort}"] = {"batches": list(seen), "sums": watch.sums}
        found[f"{count} worst"] = max(float((weights[True][k] - weights[False][k]).abs().max()) for k in weights[True])
    return found


# FSDP without Trainer: accelerate ignores it on CPU


def manual_run(strategy, shard, rank, world, adapter=None):
    """Our callback and optimizer around a plain loop, on a model that may be sharded."""
    set_seed(0)
    model = bert(**STILL) if adapter is None else adapted(adapter)
    groups = discover_layer_groups(model)
    learning = ever_learning_names(strategy, model, groups)
    set_trainable(model, learning)
    model = shard(model)
    optimizer = build_optimizer(
        torch.optim.SGD, {"lr": 0.1}, model, groups, learning=learning, decayed=set(), weight_decay=0.0
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    callback = FreezingCallback(strategy, groups=groups)
    args = TrainingArguments("unused", use_cpu=True, report_to="none")
    state = TrainerState(max_steps=STEPS, num_train_epochs=1)
    around = {"model": model, "optimizer": optimizer, "lr_scheduler": scheduler, "train_dataloader": None}
    callback.on_train_begin(args, state, None, **around)
    data, share = rows(64), 8 // world
    model.train()
    for step in range(STEPS):
        callback.on_step_begin(args, state, None, **around)
        batch = data[step * 8 + rank * share : step * 8 + (rank + 1) * share]
        model(**{name: torch.stack([row[name] for row in batch]) for name in batch[0]}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        state.global_step += 1
    return model


def fsdp2(model):
    for layer in beneath_adapters(model)[0].bert.encoder.layer:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    return model


def fsdp1(model, use_orig_params=True):
    def is_block(module, recurse, **unused):
        return recurse or isinstance(module, BertLayer)

    return FullyShardedDataParallel(
        model, use_orig_params=use_orig_params, auto_wrap_policy=is_block, device_id=torch.device("cpu")
    )


def wrapped(out, rank):
    """What FSDP 1 gets, with the original parameters and without."""
    trainer = make_trainer(out / "w", model=bert(**STILL), weight_decay=0.1, optim="adamw_torch")
    attach(trainer, schedule=freeze_first(1), learning_rates=LayerwiseDecay(0.5))
    plain, groups = settings(trainer.create_optimizer()), discover_layer_groups(trainer.model)
    model = fsdp1(trainer.model)
    trainer.optimizer = None
    flat = make_trainer(out / "f", model=bert(**STILL))
    attach(flat, schedule=full())
    flattened = fsdp1(flat.model, use_orig_params=False)
    made = flat.create_optimizer(flattened).param_groups
    alone = FreezingCallback(freeze_first(1))
    state = TrainerState(max_steps=STEPS, num_train_epochs=1)
    around = {"model": flattened, "optimizer": flat.optimizer, "lr_scheduler": None, "train_dataloader": None}
    return {
        "decay": settings(trainer.create_optimizer(model)) == plain and {group[1] for group in plain} == {0.1, 0.0},
        "groups": [[g.name, g.parameters] for g in groups]
        == [[g.name, g.parameters] for g in discover_layer_groups(model)],
        "alone": message(lambda: alone.on_train_begin(flat.args, state, None, **around)),
        "full": sum(p.numel() for g in made for p in g["params"]) == sum(p.numel() for p in flattened.parameters()),
    }


def settings(optimizer):
    return [[group["lr"], group["weight_decay"], group["param_names"]] for group in optimizer.param_groups]


def sharded(out, rank):
    worst = {}
    set_seed(0)
    untouched = bert(**STILL).state_dict()
    for name in ("gradual", "chain", "sampling", "freeze-first"):
        expected = manual_run(STRATEGIES[name], lambda model: model, 0, 1).state_dict()
        model = manual_run(STRATEGIES[name], fsdp2, rank, 2)
        full = {k: v.full_tensor() for k, v in model.state_dict().items() if isinstance(v, DTensor)}
        assert full.keys() == dict(model.named_parameters()).keys()
        worst[f"fsdp2 {name}"] = max(float((full[k] - expected[k]).abs().max()) for k in full)
        model = manual_run(STRATEGIES[name], fsdp1, rank, 2)
        with FullyShardedDataParallel.summon_full_params(model):
            found = {k: v.clone() for k, v in model.state_dict().items()}
        worst[f"fsdp1 {name}"] = max(float((found[k] - expected[k]).abs().max()) for k in expected)
        head = expected["classifier.weight"] - untouched["classifier.weight"]
        assert float(head.abs().max()) > 1e-3
    return worst


def sharded_adapters(out, rank):
    worst = {}
    for adapter, name in (("lora", "gradual"), ("lora", "chain"), ("upper", "sampling"), ("ia3", "full")):
        before = adapted(adapter).state_dict()
        strategy = ADAPTER_STRATEGIES[name]
        expected = manual_run(strategy, lambda model: model, 0, 1, adapter).state_dict()
        model = manual_run(strategy, fsdp2, rank, 2, adapter)
        found = {k: v.full_tensor() for k, v in model.state_dict().items() if isinstance(v, DTensor)}
        assert found.keys() == dict(model.named_parameters()).keys()
        worst[f"{adapter} {name}"] = max(float((found[k] - expected[k]).abs().max()) for k in found)
        base = [k for k in found if not any(mark in k for mark in ("lora_", "ia3_", "modules_to_save"))]
        assert base
        assert all(torch.equal(found[k], before[k]) for k in base)
        assert any(float((found[k] - before[k]).abs().max()) > 1e-4 for k in found if k not in base)
    return worst


def main():
    out, name = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    args = TrainingArguments(str(out / "start"), use_cpu=True, report_to="none")
    assert args.world_size == 2
    found = globals()[name](out, args.process_index)
    (out / f"{name}-{args.process_index}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


if __name__ == "__main__":
    main()
