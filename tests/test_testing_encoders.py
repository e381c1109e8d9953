"""The conformance kit for encoders: ours keep every promise, and each is seen to be broken."""

import itertools
from dataclasses import dataclass

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("d3rlpy")
pytest.importorskip("torch_geometric")

from broken_promises import breaks  # noqa: E402
from d3rlpy.models.encoders import (  # noqa: E402
    EncoderFactory,
    VectorEncoderFactory,
    register_encoder_factory,
)
from torch import nn  # noqa: E402

from crystal_gym.agents import MEGNetEncoderFactory, rows_to_batch  # noqa: E402
from crystal_gym.testing import check_encoder_factory  # noqa: E402

N_FEATURES = 16


class SumEncoder(nn.Module):
    """The simplest network that keeps every promise; hooks are where others break one."""

    def __init__(self, factory):
        super().__init__()
        self.factory = factory
        self.embed = nn.Embedding(89, N_FEATURES)
        width = factory.width()
        self.mix = nn.Linear(N_FEATURES + 1, width)
        self.cell = nn.Linear(7, width)
        self.constant = torch.rand(1)

    def forward(self, x):
        x = self.factory.rows(x)
        batch = rows_to_batch(x)
        sites = torch.cat([self.embed(batch.element_token), batch.focus[:, None]], 1)
        sites = self.factory.sites(torch.tanh(self.mix(sites)), batch)
        pooled = sites.new_zeros(len(batch), sites.shape[1])
        pooled = pooled.index_add(0, batch.node_graph, sites)
        cell = torch.cat([batch.lattice / 50, batch.target_gap[:, None]], 1)
        return self.factory.features(pooled + self.cell(cell), x, batch, self)


class WithAction(nn.Module):
    def __init__(self, factory, size, discrete):
        super().__init__()
        self.encoder, self.join = SumEncoder(factory), nn.Linear(size, N_FEATURES)
        self.size, self.discrete = size, discrete

    def forward(self, x, action):
        if self.discrete:
            action = nn.functional.one_hot(action.view(-1).long(), self.size).float()
        return self.encoder.factory.joined(self.encoder(x), self.join(action))


@dataclass()
class SumFactory(EncoderFactory):
    """Of networks that sum over sites."""

    def create(self, observation_shape):
        return SumEncoder(self)

    def create_with_action(self, observation_shape, action_size, discrete_action=False):
        return WithAction(self, action_size, discrete_action)

    @classmethod
    def get_type(cls):
        return f"kit_{cls.__name__.lower()}"

    def width(self):
        return N_FEATURES

    def rows(self, x):
        return x

    def sites(self, sites, batch):
        return sites

    def features(self, features, x, batch, network):
        return features

    def joined(self, features, action):
        return torch.tanh(features + action)


register_encoder_factory(SumFactory)
BROKEN_FACTORIES = {}


def broken(promise, registered=True, **methods):
    """Add a factory that breaks one promise by its methods."""

    def add(name):
        made = dataclass()(type(name.title().replace(" ", ""), (SumFactory,), methods))
        if registered:
            register_encoder_factory(made)
        BROKEN_FACTORIES[name] = (made(), promise)

    return add


def no(*arguments, **options):
    raise NotImplementedError("not yet")


def refuses_noise(self, x):
    if bool(((x[:, 0] > 0) & (x[:, 0] < 1)).any()):
        raise ValueError("rows of no table")
    return x


def changed_rows(self, x):
    x[:, 1] += 0.0
    x[:, -1] = 7.0
    return x


def means(self, features, x, batch, network):
    return features / batch.n_nodes[:, None]


def roots(self, features, x, batch, network):
    return features + (features - features.detach()).square().sum(1, keepdim=True).sqrt()


def without_target(self, x):
    return torch.cat([x[:, :4], 0 * x[:, 4:5], x[:, 5:]], 1)


widths = itertools.count(N_FEATURES)
broken("it is registered", registered=False)("unregistered")
broken("it comes back from JSON as it was", __eq__=lambda a, b: a is b)("unequal")
broken("get_type() returns the name", registered=False, get_type=no)("nameless")
broken("create((width,)) makes a network", create=no)("not made")
broken("makes a torch module", create=lambda self, shape: lambda x: x)("function")
broken("forward takes rows (B, width)", rows=no)("no rows")
broken("features are float32 (B, n_features)", features=lambda self, f, x, b, n: f.double())(
    "double"
)
broken(
    "features are float32 (B, n_features)",
    features=lambda self, f, x, b, n: n.embed(b.element_token),
)("sites laid out")
broken("features are finite with rows of zeros", features=means)("mean of nothing")
broken("it takes the uniform noise with which d3rlpy probes", rows=refuses_noise)("strict")
broken(
    "the number of features is the same for every input",
    features=lambda self, f, x, b, n: f.repeat(1, 1 + (len(x) == 2)),
)("width of batch")
broken("features have gradients", features=lambda self, f, x, b, n: f.detach().requires_grad_())(
    "detached"
)
broken("gradients are finite, with rows of zeros in the batch too", features=roots)("root")
broken("rows are left as they were given", rows=changed_rows)("in place")
broken(
    "in evaluation it gives the same features every time",
    features=lambda self, f, x, b, n: f + 0.1 * torch.rand_like(f),
)("noise")
broken(
    "a row has the same features alone and among others",
    features=lambda self, f, x, b, n: f - f.mean(0),
)("normalised")
broken("features depend on the target", rows=without_target)("no target")
broken(
    "features depend on the elements",
    features=lambda self, f, x, b, n: n.cell(
        torch.cat([b.lattice / 50, b.target_gap[:, None] + 0 * f[:, :1]], 1)
    ),
)("no elements")
broken(
    "features depend on the site in focus",
    features=lambda self, f, x, b, n: (
        n.cell(torch.cat([b.lattice / 50, b.target_gap[:, None]], 1))
        + f.new_zeros(f.shape).index_add(0, b.node_graph, n.embed(b.element_token))
        + 0 * f
    ),
)("no focus")
broken(
    "features do not depend on how the sites are numbered",
    sites=lambda self, s, b: (
        s * (1 + torch.arange(len(s))[:, None] - b.node_start[b.node_graph][:, None])
    ),
)("site numbers")
broken("a network of the factory takes the state_dict of another", width=lambda self: next(widths))(
    "other layers"
)
broken(
    "with the same state_dict it gives the same features",
    features=lambda self, f, x, b, n: f * (1 + n.constant),
)("hidden constant")
broken("create_with_action((width,), action_size", create_with_action=no)("no action network")
broken("features depend on discrete actions", joined=lambda self, f, a: f)("action unseen")
broken(
    "features depend on the row beside discrete actions",
    joined=lambda self, f, a: a + 0 * f,
)("row unseen")
broken(
    "compact and packed rows of a state have the same features",
    features=lambda self, f, x, b, n: f * (1 + x[:, :1].sign()),
)("one form")


@dataclass()
class WidthFactory(SumFactory):
    """Of networks with a layer as wide as a row."""

    def create(self, observation_shape):
        network = super().create(observation_shape)
        network.unused = nn.Linear(observation_shape[0], 2)
        return network


register_encoder_factory(WidthFactory)
BROKEN_FACTORIES["width"] = (WidthFactory(), "the weights do not depend on the width of a row")


@pytest.mark.parametrize(
    "factory",
    [SumFactory(), MEGNetEncoderFactory(), MEGNetEncoderFactory("paper")],
    ids=["sums", "default", "paper"],
)
def test_encoder_factories_keep_their_promises(factory):
    check_encoder_factory(factory)


@pytest.mark.parametrize(("factory", "promise"), BROKEN_FACTORIES.values(), ids=BROKEN_FACTORIES)
def test_a_broken_encoder_factory_is_told_which_promise(made_set, factory, promise):
    breaks(promise, check_encoder_factory, factory, skeletons=made_set)


def test_what_reads_rows_as_plain_numbers_depends_on_the_numbering():
    plain = VectorEncoderFactory([16])
    breaks("how the sites are numbered", check_encoder_factory, plain, forms=("packed",))
    published = MEGNetEncoderFactory("paper", "index")
    breaks("how the sites are numbered", check_encoder_factory, published)


def test_an_encoder_of_one_form_passes_with_that_form():
    check_encoder_factory(BROKEN_FACTORIES["one form"][0], forms=("compact",))
    check_encoder_factory(WidthFactory(), forms=("packed",))
    breaks("EncoderFactory, not its class", check_encoder_factory, SumFactory)
    with pytest.raises(ValueError, match="expected some of compact, packed"):
        check_encoder_factory(SumFactory(), forms=("graph",))
