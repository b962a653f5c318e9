"""Methods: terms are finite and teach only what they should; RoCL and TRADES against slow transcriptions."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from robench.errors import UsageError
from robench.geometry import norm_of, project, random_start, steepest
from robench.losses import contrastive, cross_entropy, distance
from robench.methods import method_for
from robench.methods.rocl import RoCL
from robench.models import Nets, build_nets
from robench.noise import ImageGenerator, normal
from robench.protocols import Batch, Method, Moment
from robench.registry import METHODS
from robench.threat import ThreatModel

LINF = ThreatModel.parse("linf-0.1")
AT = Moment(0, 10, LINF)
N = 8
ALL = pytest.mark.parametrize("name", METHODS.rows)
PROJECTS = ("simclr", "supcon", "rocl", "finetune-at-ss")  # methods with a projector
SMALL = {name: {"hidden": 32, "dimensions": 16} for name in PROJECTS}


def images(seed: int) -> Tensor:
    return torch.rand(N, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def batch_for(method: Method, seed: int = 0) -> Batch:
    views = tuple(images(seed + number) for number in range(len(method.views)))
    return Batch(views, torch.arange(N) % 4, ImageGenerator(seed, range(N)))


def nets_for(method: Method) -> Nets:
    """A small network with the method's heads, set up as the trainer does: only what learns is in train mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        nets = build_nets("cnn@width=4", (1, 8, 8), "digits", normalise=False)
        for name, head in method.heads(nets.encoder.features, 4).items():
            nets.parts[name] = head
        for _ in range(30):  # running statistics near those of a batch, as in training
            nets.features(images(9))
    nets.eval().requires_grad_(False)
    for name in method.trains:
        nets.named(name).train().requires_grad_(True)
    return nets


def made(name: str, **options: Any) -> tuple[Any, Nets]:
    method = method_for(name, {**SMALL.get(name, {}), **options})
    return method, nets_for(method)


def rocl(**options: Any) -> tuple[RoCL, Nets]:
    return made("rocl", **options)


def flags(nets: Nets) -> list[Any]:
    modes = [module.training for module in nets.modules()]
    return [modes, [(p.requires_grad, p.grad is None) for p in nets.parameters()]]


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


@ALL
def test_terms_are_finite_numbers(name: str) -> None:
    method, nets = made(name)
    terms = method.terms(nets, batch_for(method), AT)
    assert terms
    assert all(term.shape == () and term.isfinite() for term in terms.values())


@ALL
def test_gradients_reach_what_it_trains_and_nothing_else(name: str) -> None:
    method, nets = made(name)
    nets.requires_grad_(True)  # even when everything could learn
    total(method.terms(nets, batch_for(method), AT)).backward()
    for part in ("encoder", *nets.parts):
        reached = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in nets.named(part).parameters()]
        assert any(reached) == (part in method.trains)


@ALL
def test_terms_leave_modes_and_parameters_as_they_were(name: str) -> None:
    method, nets = made(name)
    before, state = flags(nets), {key: value.clone() for key, value in nets.named_parameters()}
    method.terms(nets, batch_for(method), AT)
    assert flags(nets) == before
    assert all(torch.equal(value, state[key]) for key, value in nets.named_parameters())


@ALL
def test_terms_change_neither_the_views_nor_the_global_generator(name: str) -> None:
    method, nets = made(name)
    batch = batch_for(method)
    views, state = [view.clone() for view in batch.views], torch.get_rng_state()
    method.terms(nets, batch, AT)
    assert all(torch.equal(view, copy) for view, copy in zip(batch.views, views, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


@ALL
def test_terms_repeat(name: str) -> None:
    method, nets = made(name)
    state = {key: value.clone() for key, value in nets.state_dict().items()}
    first = method.terms(nets, batch_for(method), AT)
    nets.load_state_dict(state)
    second = method.terms(nets, batch_for(method), AT)
    assert all(torch.equal(first[key], second[key]) for key in first)


@ALL
def test_self_supervised_methods_read_no_labels(name: str) -> None:
    method, nets = made(name)
    batch = batch_for(method)
    state = {key: value.clone() for key, value in nets.state_dict().items()}
    first = total(method.terms(nets, batch, AT))
    nets.load_state_dict(state)
    other = total(
        method.terms(nets, dataclasses.replace(batch_for(method), y=batch.y // 2), AT)
    )  # other classes, not renamed ones
    assert bool(first == other) == (not method.supervised)


@ALL
def test_a_method_is_data(name: str) -> None:
    method, _ = made(name)
    assert dataclasses.is_dataclass(method)
    assert set(method.views) <= {"augmented", "original"}
    assert method.select in ("clean", "robust", "last")
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anything = 1


ATTACK_LOSSES = ["contrastive", "mse", "l1", "cosine"]


@pytest.mark.parametrize("target", ["other", "original"])
def test_the_instance_attack_makes_images_less_recognisable(target: str) -> None:
    method, nets = rocl(attack_target=target)
    a, b = batch_for(method).views
    aim = b if target == "other" else a
    adv, _ = method.instance_attack(nets, a, aim, batch_for(method), AT)
    start = random_start(a, LINF, batch_for(method).generator)
    nets.eval()

    def loss(x: Tensor) -> Tensor:
        with torch.no_grad():
            return contrastive((nets.project(x), nets.project(aim)), temperature=method.temperature, anchors=(0,))

    assert loss(adv).mean() > loss(start).mean() + 0.05
    assert norm_of(adv - a, LINF.norm).max() <= LINF.eps * (1 + 1e-5)
    assert adv.min() >= 0
    assert adv.max() <= 1


@pytest.mark.parametrize("bn", ["eval", "train"])
@pytest.mark.parametrize("target", ["other", "original"])
@pytest.mark.parametrize("loss", ATTACK_LOSSES)
def test_every_attack_loss_moves_away_from_its_target(loss: str, target: str, bn: str) -> None:
    # the cosine attack of the released code moved towards it until its sign was mended
    method, nets = rocl(attack_loss=loss, attack_target=target, attack_bn=bn)
    a, b = batch_for(method).views
    aim = b if target == "other" else a
    adv, gain = method.instance_attack(nets, a, aim, batch_for(method), AT)
    start = random_start(a, LINF, batch_for(method).generator)
    nets.train(bn == "train")
    with torch.no_grad():
        z, before, after = nets.project(aim), nets.project(start), nets.project(adv)
    apart = {
        "contrastive": lambda u: contrastive((u, z), temperature=0.5, anchors=(0,)),
        "mse": lambda u: ((u - z) ** 2).mean(1),
        "l1": lambda u: (u - z).abs().mean(1),
        "cosine": lambda u: -torch.nn.functional.cosine_similarity(u, z),
    }[loss]
    assert apart(after).mean() > apart(before).mean()
    recognised = contrastive((before, z), temperature=0.5, anchors=(0,))
    rise = contrastive((after, z), temperature=0.5, anchors=(0,)) - recognised  # whatever the attack climbs
    assert gain.item() == pytest.approx(rise.mean().item(), rel=1e-3, abs=1e-6)
    assert gain > 0


def test_a_distance_with_its_sign_reversed_shows_in_the_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robench.methods.rocl.distance", lambda *given: -distance(*given))
    method, nets = rocl(attack_loss="cosine")
    a, b = batch_for(method).views
    assert method.instance_attack(nets, a, b, batch_for(method), AT)[1] < 0


def test_an_attack_that_cannot_move_gains_nothing() -> None:
    method, nets = rocl()
    a, b = batch_for(method).views
    _, gain = method.instance_attack(nets, a, b, batch_for(method), Moment(0, 1, ThreatModel.parse("linf-0")))
    assert gain.item() == 0


def test_what_is_measured_enters_no_loss() -> None:
    method, nets = rocl()
    terms = method.terms(nets, batch_for(method), AT)
    assert set(terms) == {"contrastive", "regulariser"}
    assert set(terms.measured) == {"attack gain"}
    assert terms.measured["attack gain"] > 0
    assert not terms.measured["attack gain"].requires_grad


def test_the_attack_has_a_temperature_of_its_own_on_request() -> None:
    found = {}
    for name, options in {
        "shared": {"temperature": 0.1},
        "same": {"temperature": 0.1, "attack_temperature": 0.1},
        "own": {"temperature": 0.1, "attack_temperature": 2.0},
    }.items():
        method, nets = rocl(**options)
        a, b = batch_for(method).views
        found[name] = method.instance_attack(nets, a, b, batch_for(method), AT)
        z = [
            torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(s))) for s in (0, 1)
        ]
        expected = contrastive(z, temperature=2.0 if name == "own" else 0.1, anchors=(0,))
        assert torch.equal(method.apart(*z), expected)
    assert torch.equal(found["shared"][0], found["same"][0])
    assert found["shared"][1] != found["own"][1]


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_an_attack_moves_running_statistics_in_train_mode_only(bn: str) -> None:
    method, nets = rocl(attack_bn=bn)
    a, b = batch_for(method).views
    counter = nets.state_dict()["encoder.body.1.num_batches_tracked"]
    before = int(counter)
    method.instance_attack(nets, a, b, batch_for(method), AT)
    assert int(counter) - before == (0 if bn == "eval" else method.steps + 2)


@pytest.mark.parametrize("loss", ["mse", "l1", "cosine"])
def test_the_second_term_pulls_together_whatever_its_loss(loss: str) -> None:
    # its weight counts for every loss, and it is a mean over images: twice the batch is not half the loss
    values = []
    for weight in (0.5, 1.0):
        method, nets = rocl(regularise_loss=loss, regularise=weight)
        values.append(method.terms(nets, batch_for(method), AT)["regulariser"])
    assert values[1].item() == pytest.approx(2 * values[0].item(), rel=1e-5)
    assert values[0] > 0
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    twice = distance(torch.cat([z, z]), torch.cat([2 * z.flip(1), 2 * z.flip(1)]), loss).mean()  # type: ignore[arg-type]
    assert twice.item() == pytest.approx(distance(z, 2 * z.flip(1), loss).mean().item(), rel=1e-6)  # type: ignore[arg-type]


def test_target_of_the_attack_and_of_the_second_term_are_independent() -> None:
    # in the released code one follows the other, so that two of these four cannot be had
    found = {}
    for target in ("other", "original"):
        for partner in ("other", "original"):
            method, nets = rocl(attack_target=target, regularise_to=partner, regularise=1.0)
            terms = method.terms(nets, batch_for(method), AT)
            found[target, partner] = tuple(round(value.item(), 6) for value in terms.values())
    assert len(set(found.values())) == 4
    for target in ("other", "original"):  # the partner decides the second term alone
        assert found[target, "other"][0] == pytest.approx(found[target, "original"][0], rel=1e-5)
        assert found[target, "other"][1] != found[target, "original"][1]


@pytest.mark.parametrize("groups", [1, 2])
def test_negatives_come_from_the_whole_batch_unless_groups_are_asked_for(groups: int) -> None:
    # on the released code's GPUs each half of the batch saw only itself in attack and second term
    method, nets = rocl(groups=groups)
    a, b = batch_for(method).views
    other = a.clone()
    other[N // 2 :] = images(77)[N // 2 :]
    first, second = (
        method.instance_attack(nets, x, b, batch_for(method), AT)[0][: N // 2].round(decimals=5) for x in (a, other)
    )
    assert torch.equal(first, second) == (groups == 2)
    z = [torch.randn(N, 5, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    half = [[part[: N // 2] for part in z], [part[N // 2 :] for part in z]]
    expected = torch.cat([contrastive(part, temperature=0.5) for part in ([z] if groups == 1 else half)]).mean()
    assert method._pull(*z).mean().item() == pytest.approx(
        torch.cat([contrastive(p, temperature=0.5, detach_keys=True) for p in ([z] if groups == 1 else half)])
        .mean()
        .item()
    )
    assert method._pull(*z).mean().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"attack_temperature": 0.0}, "attack_temperature must be above 0"),
        ({"attack_temperature": float("inf")}, "attack_temperature must be above 0"),
        ({"regularise": -1.0}, "regularise must be"),
        ({"groups": 0}, "groups must be at least 1"),
        ({"attack_loss": "cos"}, "'cos' is not one of 'contrastive', 'mse', 'l1', 'cosine'"),
        ({"attack_target": "both"}, "'both' is not one of"),
        ({"detach_keys": "False"}, "detach_keys: expected bool"),  # any text is true to bool()
        ({"steps": 0}, "must be at least 1"),
    ],
    ids=str,
)
def test_rocl_refuses_options_that_mean_nothing(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        method_for("rocl", options)


@pytest.mark.parametrize("name", PROJECTS)
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_cannot_divide_is_refused(name: str, temperature: float) -> None:
    with pytest.raises(UsageError, match="temperature must be above 0"):
        method_for(name, {"temperature": temperature})


@pytest.mark.parametrize("loss", ATTACK_LOSSES)
@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_of_a_cached_key_is_that_of_a_fresh_one(detach: bool, loss: str) -> None:
    method, nets = rocl(detach_keys=detach, attack_loss=loss)
    a, b = (view.double() for view in batch_for(method).views)
    nets.double().eval()
    with torch.no_grad():
        key = nets.project(b)
    gradients = []
    for fresh in (False, True):
        adv = (a + 0.05 * torch.rand(a.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
        z, other = nets.project(torch.cat([adv, b])).chunk(2) if fresh else (nets.project(adv), key)
        gradients.append(torch.autograd.grad(method.apart(z, other).sum(), adv)[0])
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("detach", [True, False])
def test_a_cached_key_gives_the_adversary_of_a_fresh_one(detach: bool) -> None:
    method, nets = rocl(detach_keys=detach)
    a, b = batch_for(method).views
    fast, _ = method.instance_attack(nets, a, b, batch_for(method), AT)

    nets.eval()
    adv = random_start(a, LINF, batch_for(method).generator)
    for _ in range(method.steps):
        adv = adv.detach().requires_grad_()
        z, key = nets.project(torch.cat([adv, b])).chunk(2)  # the target is encoded again at every step
        loss = contrastive((z, key), temperature=method.temperature, anchors=(0,), detach_keys=detach).sum()
        (gradient,) = torch.autograd.grad(loss, adv)
        with torch.no_grad():
            adv = project(adv + method.step * LINF.eps * steepest(gradient, adv, LINF.norm), a, LINF)
    assert torch.allclose(fast, adv, atol=1e-6)


def log_softmax_sum(vectors: Tensor, n: int, temperature: float) -> Tensor:
    """The sum of -log(exp s(u, p) / sum of exp s(u, k)) over all anchors u and their other views p; pair by pair."""
    z = vectors / vectors.norm(dim=1, keepdim=True)
    found = torch.zeros(())
    for u in range(len(z)):
        s = z[u] @ z.T / temperature
        every = torch.cat([s[:u], s[u + 1 :]]).exp().sum()
        for p in range(len(z)):
            if p != u and p % n == u % n:
                found = found + every.log() - s[p]
    return found


@pytest.mark.parametrize("regularise_to", ["other", "original"])
def test_rocl_is_the_released_codes_loss(regularise_to: str) -> None:
    method, nets = rocl(regularise=0.5, regularise_to=regularise_to)
    batch = batch_for(method)
    a, b = batch.views
    adv, _ = method.instance_attack(nets, a, b, batch_for(method), AT)
    state = {key: value.clone() for key, value in nets.state_dict().items()}
    terms = method.terms(nets, batch, AT)

    # in the same order, since train mode moves running statistics: first the pair, then the three
    moved = nets.state_dict()
    after = {key: value.clone() for key, value in moved.items()}
    nets.load_state_dict(state)
    with torch.no_grad():
        pair = nets.project(torch.cat([adv, b if regularise_to == "other" else a]))
        three = nets.project(torch.cat([a, b, adv]))
    main = log_softmax_sum(three, N, method.temperature) / (3 * N)
    second = 0.5 * log_softmax_sum(pair, N, method.temperature) / (2 * N)
    assert terms["contrastive"].item() == pytest.approx(main.item(), rel=1e-5)
    assert terms["regulariser"].item() == pytest.approx(second.item(), rel=1e-5)
    assert all(torch.equal(after[key], value) for key, value in nets.state_dict().items())


def test_rocls_keys_are_constants_by_default_only() -> None:
    # detaching changes no value, only the gradient
    results = []
    for detach in (True, False):
        method, nets = rocl(steps=1, step=0.0, detach_keys=detach)
        loss = total(method.terms(nets, batch_for(method), AT))
        loss.backward()
        results.append((loss.item(), next(nets.encoder.parameters()).grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert not torch.allclose(results[0][1], results[1][1], rtol=1e-2)


def test_rocl_without_a_ball_is_contrastive_learning_of_three_views() -> None:
    method, nets = rocl(regularise=0.0)
    batch = batch_for(method)
    a, b = batch.views
    terms = method.terms(nets, batch, Moment(0, 1, ThreatModel.parse("linf-0")))
    with torch.no_grad():
        three = nets.project(torch.cat([a, b, a]))  # train mode: batch statistics, so moved buffers do not matter
    assert terms["contrastive"].item() == pytest.approx(log_softmax_sum(three, N, 0.5).item() / (3 * N), rel=1e-5)
    assert terms["regulariser"] == 0


def test_the_papers_form_has_one_anchor_and_its_sum_inside_the_logarithm() -> None:
    method, nets = rocl(positives="in-log", anchors="first", regularise=0.0, steps=1)
    a, b = batch_for(method).views
    adv, _ = method.instance_attack(nets, a, b, batch_for(method), AT)
    terms = method.terms(nets, batch_for(method), AT)
    with torch.no_grad():
        z = torch.nn.functional.normalize(nets.project(torch.cat([a, b, adv])), dim=1)
    s = (z[:N] @ z.T / method.temperature).exp()
    rows = torch.arange(N)
    friends = s[rows, rows + N] + s[rows, rows + 2 * N]
    expected = -(friends / (s.sum(1) - s[rows, rows])).log().mean()
    assert terms["contrastive"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_trades_is_its_formula() -> None:
    method, nets = made("trades", beta=3.0, steps=4)
    nets.eval()  # no batch statistics, so that the clean logits of the attack are those of the loss
    batch = batch_for(method)
    (x,) = batch.views
    terms = method.terms(nets, batch, AT)

    def divergence(adv: Tensor) -> Tensor:
        p, q = nets(x).detach().log_softmax(1), nets(adv).log_softmax(1)
        return (p.exp() * (p - q)).sum(1)

    adv = project(x + 0.001 * normal(batch_for(method).generator, x.shape, "cpu"), x, LINF)
    for _ in range(4):
        adv.requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(adv).sum(), adv)
        adv = project(adv.detach() + 0.25 * LINF.eps * steepest(gradient, adv, LINF.norm), x, LINF).detach()
    assert terms["ce"].item() == pytest.approx(cross_entropy(nets(x), batch.y).mean().item(), rel=1e-6)
    assert terms["kl"].item() == pytest.approx(3 * divergence(adv).mean().item(), rel=1e-3)
    assert terms["kl"] > 0


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_trades_without_a_ball_is_standard_training(mode: str) -> None:
    method, nets = made("trades")
    nets.train(mode == "train")
    terms = method.terms(nets, batch_for(method), Moment(0, 1, ThreatModel.parse("linf-0")))
    assert terms["kl"].item() == pytest.approx(0, abs=1e-6)


FINETUNES = ("finetune-at", "finetune-trades", "finetune-at-ss")


@pytest.mark.parametrize("name", ["pgd-at", "trades", "robust-linear", *FINETUNES])
def test_a_harder_threat_costs_more(name: str) -> None:
    method, nets = made(name)
    nets.eval()
    losses = [
        total(method.terms(nets, batch_for(method), Moment(0, 1, ThreatModel.parse(f"linf-{eps}")))).item()
        for eps in (0, 0.05, 0.2)
    ]
    assert losses == sorted(losses)
    assert losses[0] < losses[2]


@pytest.mark.parametrize("name", ["linear", "robust-linear"])
def test_linear_evaluation_leaves_the_encoder_as_it_is(name: str) -> None:
    method, nets = made(name)
    before = {key: value.clone() for key, value in nets.encoder.state_dict().items()}
    method.terms(nets, batch_for(method), AT)["ce"].backward()
    assert all(torch.equal(before[key], value) for key, value in nets.encoder.state_dict().items())
    assert all(parameter.grad is None for parameter in nets.encoder.parameters())


@pytest.mark.parametrize(("mode", "passes"), [("eval", 1), ("train", 11)])
def test_pgd_at_crafts_in_the_mode_it_was_told(mode: str, passes: int) -> None:
    # every pass in train mode is counted by batch normalisation; the last one always is
    method, nets = made("pgd-at", attack_bn=mode)
    counter = nets.state_dict()["encoder.body.1.num_batches_tracked"]
    before = int(counter)
    method.terms(nets, batch_for(method), AT)
    assert int(counter) - before == passes


def test_pgd_at_refuses_an_unknown_mode() -> None:
    with pytest.raises(UsageError, match="eval"):
        method_for("pgd-at", {"attack_bn": "trian"})


def test_supcon_is_its_loss_over_both_views() -> None:
    method, nets = made("supcon")
    batch = batch_for(method)
    loss = method.terms(nets, batch, AT)["contrastive"]
    with torch.no_grad():
        z = torch.nn.functional.normalize(nets.project(torch.cat(batch.views)), dim=1)
    y = batch.y.repeat(2)
    found = []
    for u in range(2 * N):
        s = z[u] @ z.T / 0.1
        others = torch.arange(2 * N) != u
        found.append((s[others].logsumexp(0) - s[others & (y == y[u])]).mean())
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-4)


@pytest.mark.parametrize("bn", ["train", "frozen"])
@pytest.mark.parametrize("name", FINETUNES)
def test_fine_tuning_moves_running_statistics_unless_it_is_told_not_to(name: str, bn: str) -> None:
    # the released code's attack leaves the model in eval mode, so that its fine-tuning never moved them
    method, nets = made(name, bn=bn)
    before = {key: value.clone() for key, value in nets.named_buffers()}
    loss = total(method.terms(nets, batch_for(method), AT))
    moved = [key for key, value in nets.named_buffers() if not torch.equal(value, before[key])]
    assert bool(moved) == (bn == "train")
    assert all(module.training for module in nets.encoder.modules())
    loss.backward()  # the weights of the norms learn either way
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in nets.encoder.parameters())


@pytest.mark.parametrize("name", FINETUNES)
def test_frozen_norms_compute_what_eval_mode_computes(name: str) -> None:
    method, nets = made(name, bn="frozen")
    found = total(method.terms(nets, batch_for(method), AT)).item()
    nets.eval()
    assert total(method.terms(nets, batch_for(method), AT)).item() == pytest.approx(found, rel=1e-6)


@pytest.mark.parametrize(("name", "base"), [("finetune-at", "pgd-at"), ("finetune-trades", "trades")])
def test_fine_tuning_is_adversarial_training_of_a_trained_encoder(name: str, base: str) -> None:
    losses = []
    for each in (name, base):
        method, nets = made(each)
        losses.append(total(method.terms(nets, batch_for(method), AT)).item())
    assert losses[0] == losses[1]
    assert method_for(name, {}).finetunes  # type: ignore[attr-defined]


def test_fine_tuning_with_a_self_supervised_loss_is_its_formula() -> None:
    method, nets = made("finetune-at-ss", weight=0.5)
    nets.eval()
    batch = batch_for(method)
    x, view = batch.views
    terms = method.terms(nets, batch, AT)
    plain = method_for("finetune-at", {})
    adv = plain.terms(nets, dataclasses.replace(batch_for(method), views=(x,)), AT)["ce"]
    ce = [cross_entropy(nets(part), batch.y).mean() for part in (x, view)]
    assert terms["ce"].item() == pytest.approx((sum(ce) + adv).item() / 3, rel=1e-5)
    # both views of every image: half of the anchors would do for a loss on the adversarial half alone
    expected = log_softmax_sum(nets.project(torch.cat([x, view])), N, 0.5) / (2 * N)
    assert terms["contrastive"].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("finetune-at", {"bn": "eval"}, "'eval' is not one of 'train', 'frozen'"),
        ("finetune-at-ss", {"weight": -1.0}, "weight must be"),
        ("linear", {"solver": "lbfgs"}, "'lbfgs' is not one of 'sgd', 'exact'"),
        ("linear", {"solver": "exact", "weight_decay": 0.0}, "weight_decay must be"),
        ("linear", {"weight_decay": 1e-3}, "is for solver"),
    ],
    ids=str,
)
def test_protocols_refuse_options_that_mean_nothing(name: str, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        method_for(name, options)


def test_an_exact_head_has_no_gradient_left() -> None:
    method, nets = made("linear", solver="exact", weight_decay=1e-3)
    nets.eval()
    x, y = torch.cat([images(seed) for seed in range(4)]), torch.arange(4 * N) % 4
    found = method.solve(nets, [(x[:20], y[:20]), (x[20:], y[20:])])
    head = nets.parts["head"].double().requires_grad_(True)
    with torch.no_grad():
        features = nets.features(x).double()
    loss = cross_entropy(head(features), y).mean()
    (loss + 5e-4 * head.weight.square().sum()).backward()
    assert max(p.grad.abs().max() for p in head.parameters()) < 1e-6  # weights are stored in float32
    assert found["ce"] == pytest.approx(loss.item(), rel=1e-5)
    assert found["gradient"] <= 1e-7


def climbed(nets: Nets, x: Tensor, y: Tensor) -> Tensor:
    """The sign of the gradient of the cross-entropy in eval mode."""
    nets.eval()
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(nets(x), y).sum(), x)
    return gradient.sign()


def test_fgsm_rs_is_its_formula() -> None:
    method, nets = made("fgsm-rs")
    batch = batch_for(method)
    (x,) = batch.views
    eta = random_start(x, LINF, batch_for(method).generator) - x
    delta = (eta + 1.25 * LINF.eps * climbed(nets, x + eta, batch.y)).clamp(-LINF.eps, LINF.eps)
    expected = (x + delta).clamp(0, 1)
    adv = method.craft(nets, batch_for(method), AT)
    assert ((adv - expected).abs() < 1e-6).float().mean() > 0.99  # where the gradient is not zero up to rounding
    assert norm_of(adv - x, LINF.norm).max() <= LINF.eps * (1 + 1e-5)
    loss = cross_entropy(nets(adv), batch.y).mean()
    assert method.terms(nets, batch_for(method), AT)["ce"].item() == pytest.approx(loss.item(), rel=1e-6)


def test_n_fgsm_is_its_formula_and_leaves_the_ball() -> None:
    method, nets = made("n-fgsm", noise=3.0, step=0.5)
    batch = batch_for(method)
    (x,) = batch.views
    noisy = random_start(x, ThreatModel(LINF.norm, 3 * LINF.eps), batch_for(method).generator)
    expected = (noisy + 0.5 * LINF.eps * climbed(nets, noisy, batch.y)).clamp(0, 1)
    adv = method.craft(nets, batch_for(method), AT)
    assert ((adv - expected).abs() < 1e-6).float().mean() > 0.99
    far = norm_of(adv - x, LINF.norm)
    assert (far > LINF.eps).all()
    assert far.max() <= 3.5 * LINF.eps * (1 + 1e-5)


@pytest.mark.parametrize("threat", ["linf-1", "l2-1", "l1-4"])
@pytest.mark.parametrize("name", ["fgsm-rs", "n-fgsm"])
def test_one_step_methods_train_in_every_norm(name: str, threat: str) -> None:
    method, nets = made(name)
    adv = method.craft(nets, batch_for(method), Moment(0, 1, ThreatModel.parse(threat)))
    assert adv.isfinite().all()
    assert adv.min() >= 0
    assert adv.max() <= 1


SUPERVISED = ("standard", "pgd-at", "fgsm-rs", "n-fgsm", "trades", "linear", "robust-linear", *FINETUNES)


@pytest.mark.parametrize("name", SUPERVISED)
def test_smoothing_spreads_its_share_over_all_classes(name: str) -> None:
    losses = []
    for smoothing in (0.0, 0.25, 0.5):
        method, nets = made(name, smoothing=smoothing)
        losses.append(method.terms(nets, batch_for(method), AT)["ce"].item())
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2, rel=1e-5)  # linear in the share
    assert losses[0] != losses[2]


def test_a_smoothed_target_is_what_it_says() -> None:
    logits, y = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    target = 0.2 / 4 + 0.8 * torch.nn.functional.one_hot(y, 4)
    expected = -(target * logits.log_softmax(1)).sum(1)
    assert (cross_entropy(logits, y, 0.2) - expected).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("standard", {"smoothing": 1.0}, "smoothing must be"),
        ("pgd-at", {"smoothing": -0.1}, "smoothing must be"),
        ("rst", {"smoothing": 2.0}, "smoothing must be"),
        ("linear", {"solver": "exact", "smoothing": 0.1}, "is for solver"),
        ("fgsm-rs", {"step": 0.0}, "step must be"),
        ("n-fgsm", {"noise": 0.0}, "noise must be"),
        ("n-fgsm", {"attack_bn": "both"}, "'both' is not one of"),
    ],
    ids=str,
)
def test_one_step_methods_and_smoothing_refuse_what_means_nothing(
    name: str, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        method_for(name, options)
