"""Every operation of an uploaded loss against torch: values and gradients, at ties, bounds and zeros too.

Cases are traced and encoded as the SDK does it. They share programs, as compiling takes longest: each computes with
its own row of the logprobs, so that the rows of one gradient are theirs.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from tests.engine.graphs import rebuild, trace
from txlab.engine.torch_ops import FUNCTIONS, METHODS

torch = pytest.importorskip("torch")
F = torch.nn.functional

VECTOR = np.array([-1.5, 0.0, 0.0, 2.0, 2.0, -0.5], np.float32)
MATRIX = np.array([[1, 1, 0], [-1, 2, 2], [0, 0, 0], [3, -2, 0.5]], np.float32)
INPUTS = {
    "y": np.array([0.5, 0.0, 1.0, 2.0, -1.0, -0.5], np.float32),  # like VECTOR in some places
    "i": np.array([0, 2, 2, 5, 1, 0], np.int64),
    "m": np.array([[1, 2, 0], [0, 2, -1], [0.5, 0, 1], [3, 1, 1]], np.float32),
    "s": np.array(0.7, np.float32),
}

VECTOR_CASES = {
    # arithmetic
    "add": lambda x, y, i, m, s: x + y + 1 + s,
    "add alpha": lambda x, y, i, m, s: torch.add(x, y, alpha=2) + x.add(i, alpha=3),
    "sub": lambda x, y, i, m, s: 1 - x - y,
    "sub alpha": lambda x, y, i, m, s: torch.sub(x, y, alpha=0.5) + torch.rsub(x, y) + x.subtract(1),
    "mul": lambda x, y, i, m, s: 2 * x * y * i,
    "div": lambda x, y, i, m, s: x / (y + 3) + 2 / (x + 3),
    "div of integers": lambda x, y, i, m, s: x * (i / 2) + torch.div(i, 3),
    "div rounded": lambda x, y, i, m, s: (
        x * (torch.div(x, 0.7, rounding_mode="floor") + torch.div(x, 0.7, rounding_mode="trunc"))
    ),
    "integers rounded": lambda x, y, i, m, s: x * torch.div(i - 3, 2, rounding_mode="trunc") + (i - 3) // 2,
    "floordiv, mod": lambda x, y, i, m, s: x * (y // 0.3) + (x + 0.1) % 0.4 + (i - 3) % 2,
    "fmod, remainder": lambda x, y, i, m, s: torch.fmod(x + 0.1, 0.4) + torch.remainder(x + 0.1, y + 3),
    "pow": lambda x, y, i, m, s: x**2 + x**3 + (x + 2) ** 0.5 + (x + 2) ** -1,
    "pow of numbers": lambda x, y, i, m, s: 2**x + torch.pow(x, 0) + x * i**2,
    "pow of tensors": lambda x, y, i, m, s: (x + 2) ** y + torch.pow(y + 3, x) + x**i,
    "neg, abs, sign": lambda x, y, i, m, s: -x + abs(x) + x.abs() * 2 + torch.sign(x) * x + torch.neg(x).negative(),
    "matmul of vectors": lambda x, y, i, m, s: x @ y + torch.dot(x, y) + x.dot(x),
    "comparisons": lambda x, y, i, m, s: (
        x * (x > y) + 2 * (x >= y) + 3 * (x < y) + 5 * (x <= y) + 7 * (x == y) + x * (x != 0)
    ),
    "comparison methods": lambda x, y, i, m, s: x * torch.gt(x, y) + x * x.le(0) + x.ne(y).float() + x.eq(0).int(),
    "logic": lambda x, y, i, m, s: (
        x * ((x > 0) & (y > 0)) + 2 * ((x > 0) | (y > 0)) + 3 * ((x > 0) ^ (y > 0)) + 5 * ~(x > 0)
    ),
    "logic by name": lambda x, y, i, m, s: (
        x * torch.logical_and(x, y) + 2 * torch.logical_or(x, y) + 3 * torch.logical_xor(x, y) + x * x.logical_not()
    ),
    "bits": lambda x, y, i, m, s: x * (i & 1) + (i | 4) + (i ^ 3) + ~i + torch.bitwise_and(i, 2),
    "arithmetic by name": lambda x, y, i, m, s: (
        torch.mul(x, y) + x.multiply(2) + x * torch.floor_divide(i, 2) + x * i.floor_divide(2) + (+x)
    ),
    "bits by name": lambda x, y, i, m, s: (
        x * torch.bitwise_or(i, 1) + i.bitwise_xor(3) + torch.bitwise_not(i) + x * x.lt(y) + torch.ge(x, 0)
    ),
    "lerp": lambda x, y, i, m, s: torch.lerp(x, y, 0.3) + x.lerp(y, s),
    "addcmul": lambda x, y, i, m, s: torch.addcmul(x, x, y, value=0.5) + x.addcdiv(y, x + 3),
    # elementwise functions
    "exp": lambda x, y, i, m, s: torch.exp(x) + x.exp() + torch.exp2(x) + torch.expm1(x) + torch.exp(i) * x,
    "log": lambda x, y, i, m, s: (x + 2).log() + torch.log2(x + 2) + torch.log10(x + 2) + torch.log1p(x + 1),
    "sqrt": lambda x, y, i, m, s: torch.sqrt(x + 2) + (x + 2).rsqrt() + torch.square(x) + (x + 2).reciprocal(),
    "sqrt at 0": lambda x, y, i, m, s: torch.sqrt(x.abs()),
    "trigonometry": lambda x, y, i, m, s: (
        x.sin() + torch.cos(x) + torch.tan(x * 0.3) + x.atan() + torch.atan2(x, y + 3)
    ),
    "hyperbolic": lambda x, y, i, m, s: torch.tanh(x) + x.sinh() + x.cosh() + torch.erf(x),
    "sigmoid": lambda x, y, i, m, s: torch.sigmoid(x) + x.sigmoid() + torch.special.expit(x) + torch.sigmoid(i),
    "rounding": lambda x, y, i, m, s: (
        x * (torch.floor(y) + y.ceil() + y.trunc() + y.round() + torch.round(y * 1.26, decimals=1)) + x.floor()
    ),
    "clamp": lambda x, y, i, m, s: torch.clamp(x, -0.5, 2.0) + x.clamp(min=0) + x.clip(max=2.0) + torch.clip(x, 0, 1),
    "clamp by tensors": lambda x, y, i, m, s: torch.clamp(x, y, y + 1) + torch.clamp(x, min=y) + x.clamp(max=y),
    "clamp of bounds": lambda x, y, i, m, s: torch.clamp(y, x, x + 1) + torch.clamp(y, max=x) + torch.clamp(y, min=x),
    "clamp crossed": lambda x, y, i, m, s: torch.clamp(x, 1.0, -1.0) + torch.clamp(y, x, x - 1),
    "clamp one side": lambda x, y, i, m, s: torch.clamp_min(x, 0) + x.clamp_max(2.0) + torch.clamp_max(x, y),
    "minimum, maximum": lambda x, y, i, m, s: torch.minimum(x, y) + 2 * torch.maximum(x, y) + x.minimum(x),
    "min and max of two": lambda x, y, i, m, s: torch.min(x, y) + 2 * torch.max(x, y) + x.max(y) + x.min(other=y),
    "relu": lambda x, y, i, m, s: torch.relu(x) + F.relu(x) + x.relu(),
    "where": lambda x, y, i, m, s: torch.where(x > 0, x, y) + torch.where(y > 0, x, 0.0) + x.where(y > 0, 1),
    "where of numbers": lambda x, y, i, m, s: x * torch.where(x > 0, 1.0, 0.0) + torch.where(x > 0, 1, 0),
    "masked_fill": lambda x, y, i, m, s: x.masked_fill(y > 0, -1) + torch.masked_fill(x, y == 0, 2.0),
    "nan_to_num": lambda x, y, i, m, s: (
        x * torch.nan_to_num(y / (y - 2), posinf=3.0) + (x / x).nan_to_num(0.5).detach()
    ),
    "xlogy": lambda x, y, i, m, s: torch.xlogy(y, x.abs() + 1) + torch.special.xlogy(x.abs() + 1, y.abs() + 1),
    "logaddexp": lambda x, y, i, m, s: torch.logaddexp(x, y),
    "heaviside": lambda x, y, i, m, s: x * torch.heaviside(x.detach(), y),
    "finite": lambda x, y, i, m, s: x * torch.isfinite(1 / y) + (1 / y).isinf() + (y / y).isnan(),
    "detach": lambda x, y, i, m, s: x.detach() * x + x.clone() * torch.exp(x - x.detach()) + x.data,
    # types
    "types": lambda x, y, i, m, s: (
        x.float() + y.long() * x + y.int() + x.double() + y.bool() + x.to(torch.float32) + i.to(x.dtype) + y.type_as(i)
    ),
    "placement": lambda x, y, i, m, s: x.to(x.device) + x.to("cpu") + x.cpu() + x.contiguous() + x.to(y),
    "promotion": lambda x, y, i, m, s: x * (i + 1.5) + (y > 0) * 2 + (i > 1) + i * s + i * True,
    # reductions
    "sum": lambda x, y, i, m, s: x.sum() * y + torch.sum(x * y) + x.sum(0) + x.sum(dim=-1, keepdim=True),
    "sum of others": lambda x, y, i, m, s: x * (y > 0).sum() + i.sum() + x.sum(dtype=torch.float64),
    "mean": lambda x, y, i, m, s: x.mean() * y + torch.mean(x, dim=0) + i.float().mean() + i.sum() / x.shape[0],
    "mean with type": lambda x, y, i, m, s: x * i.mean(dtype=torch.float32) + (y > 0).mean(dtype=torch.float64),
    "nan": lambda x, y, i, m, s: torch.nansum(x / y.detach() * (y - y)) + torch.nanmean(x + (y / y)),
    "prod": lambda x, y, i, m, s: x.prod() + torch.prod(y - x) + (x[3:]).prod(0),
    "std": lambda x, y, i, m, s: x.std() * y + torch.std(x, 0) + x.std(unbiased=False) + x.std(dim=0, correction=2),
    "var": lambda x, y, i, m, s: x.var() * y + torch.var(x, False) + x.var(0, keepdim=True) + torch.var(x, dim=0),
    "std of one value": lambda x, y, i, m, s: x[1:3].std() + (x - x).std() + x[3:5].std(unbiased=False),
    "normalized": lambda x, y, i, m, s: (x - x.mean()) / (x.std() + 1e-4) * y,
    "norm": lambda x, y, i, m, s: x.norm() + torch.norm(x, p=1) + x.norm(2, dim=0) + torch.norm(x, p=float("inf")),
    "norm at 0": lambda x, y, i, m, s: x[1:3].norm() + x[1:3].norm(1) + torch.linalg.vector_norm(x - x.detach()),
    "max": lambda x, y, i, m, s: x.max() * y + torch.min(x) + x.amax() + torch.amin(x, dim=0),
    "max along": lambda x, y, i, m, s: x.max(dim=0).values * y + torch.min(x, 0)[0] + x.max(0, keepdim=True).indices,
    "argmax": lambda x, y, i, m, s: x * x.argmax() + torch.argmin(x, dim=0) + x.argmax(0, keepdim=True),
    "any, all": lambda x, y, i, m, s: x * (y > 0).any() + torch.all(y > -3) + y.bool().all() + torch.any(y > 9, dim=0),
    "count_nonzero": lambda x, y, i, m, s: x * torch.count_nonzero(y) + (y > 0).count_nonzero(),
    "logsumexp": lambda x, y, i, m, s: torch.logsumexp(x, 0) * y + x.logsumexp(dim=-1, keepdim=True),
    "softmax": lambda x, y, i, m, s: torch.softmax(x, 0) + x.softmax(-1) * y + F.softmax(x, dim=0) * i,
    "log_softmax": lambda x, y, i, m, s: torch.log_softmax(x, 0) + x.log_softmax(-1) * y + F.log_softmax(x, dim=0) * i,
    "scans": lambda x, y, i, m, s: x.cumsum(0) * y + torch.cumsum(x, dim=-1) + (y > 0).cumsum(0),
    "cumprod": lambda x, y, i, m, s: x.cumprod(0) * y + torch.cumprod(y - x, dim=0),
    "logcumsumexp": lambda x, y, i, m, s: torch.logcumsumexp(x, dim=0) * y,
    "sort": lambda x, y, i, m, s: (x + y).sort().values * y + torch.sort(x + y, descending=True)[0] + (x * y).argsort(),
    "topk": lambda x, y, i, m, s: (
        (x + 2 * y).topk(2).values.sum() + torch.topk(x + 2 * y, 3, largest=False)[0].sum() * y
    ),
    # shapes
    "index": lambda x, y, i, m, s: x[0] + x[-1] * y + x[1:3].sum() + x[:-1].sum() + x[::2].sum() + x[...],
    "new axes": lambda x, y, i, m, s: x[:, None] * y[None, :] + x[None, ..., None][0],
    "index by tensor": lambda x, y, i, m, s: x[i] + x[[0, 1, 1, 2, 0, -1]] * y + x[i - 3],
    "gather": lambda x, y, i, m, s: x.gather(0, i) + torch.gather(x, -1, i[:3]).sum() + x.index_select(0, i) * y,
    "shape": lambda x, y, i, m, s: (
        x * x.shape[0] + x.size(0) + x.size()[0] + x.numel() + x.dim() + x.ndim + y.nelement()
    ),
    "numbers": lambda x, y, i, m, s: (
        x * math.sqrt(x.shape[0]) + math.log(x.size(0)) + (x.shape[0] - 1) // 2 + x.shape[0] ** 2 / 7 + -x.shape[0] % 4
    ),
    "math": lambda x, y, i, m, s: (
        x * math.exp(x.numel() / 7)
        + math.expm1(1 / x.numel())
        + (math.log2(x.numel()) + math.log10(x.numel()) * x + math.log1p(x.numel()))
        + math.pow(x.numel(), 0.5) * y
        + (math.sin(x.numel()) + math.cos(x.numel()) + math.tanh(1 / x.numel()))
        + (math.floor(x.numel() / 4) + math.ceil(x.numel() / 4) + math.fabs(-x.numel())) * x
        + (math.isfinite(x.numel()) + math.isnan(x.numel())) * y
    ),
    "view": lambda x, y, i, m, s: (
        x.view(2, 3).sum(1).repeat(3) + x.reshape(-1, 2).t().flatten() + x.view(-1).view_as(y)
    ),
    "reshape_as": lambda x, y, i, m, s: x.repeat(2).reshape_as(m.t()).sum(1).sum() * y,
    "shapes added": lambda x, y, i, m, s: x.view(x.shape + y.shape[:0]),
    "unsqueeze": lambda x, y, i, m, s: x.unsqueeze(0).squeeze() + torch.unsqueeze(x, -1).squeeze(-1) * y + x.squeeze(0),
    "expand": lambda x, y, i, m, s: (
        x[None].expand(2, -1).sum(0) + x.expand_as(x) + torch.broadcast_to(x, (2, 6))[1] * y
    ),
    "repeat": lambda x, y, i, m, s: (x.repeat(2)[3:9] + torch.tile(x, (2, 2))[1, 2:8]) * y + x.repeat_interleave(2)[:6],
    "roll": lambda x, y, i, m, s: x.roll(1) * y + torch.roll(x, -2, dims=0) * i,
    "flip": lambda x, y, i, m, s: x.flip(0) * y + torch.flip(x, dims=(0,)) * i,
    "diff": lambda x, y, i, m, s: torch.diff(x).sum() * y + x.diff(n=2).sum(),
    "stack, cat": lambda x, y, i, m, s: (
        torch.stack([x, y]).sum(0) * y + torch.cat((x, y))[3:9] + torch.stack([x, i], -1)[:, 1]
    ),
    "split": lambda x, y, i, m, s: x.split(4)[1].sum() + torch.split(x, [2, 4])[1].sum() * y + x.chunk(4)[1].sum() * i,
    "unbind": lambda x, y, i, m, s: x.unbind(0)[2] * y + x.narrow(0, 2, 3).sum() + x.select(0, -1) * i,
    "pad": lambda x, y, i, m, s: F.pad(x, (1, 0))[:6] * y + F.pad(x[:-1], (0, 1), value=2.0) + F.pad(x, (-2, 2)) * i,
    "outer": lambda x, y, i, m, s: torch.outer(x, y) + torch.einsum("i,j->ij", x, x),
    "made": lambda x, y, i, m, s: (
        x * torch.zeros_like(y) + torch.ones_like(x) + torch.full_like(x, 0.3) + torch.arange(x.shape[0]) * x
    ),
    "made of sizes": lambda x, y, i, m, s: (
        x * torch.ones(x.shape) + torch.zeros(x.size(0)) + torch.full((x.shape[0],), 2) + x.new_zeros(x.shape[0])
    ),
    "made alike": lambda x, y, i, m, s: (
        x * x.new_ones(x.size())
        + i.new_full((x.shape[0],), 3)
        + torch.linspace(0, 1, x.shape[0])
        + torch.eye(x.shape[0])
    ),
    "made in steps": lambda x, y, i, m, s: (
        x * torch.arange(0, x.shape[0] * 2, 2, device=x.device) + torch.arange(x.shape[0], dtype=torch.float32) * 0.5
    ),
    # torch.nn.functional
    "logsigmoid": lambda x, y, i, m, s: F.logsigmoid(x) * y + F.logsigmoid(x * 40),
    "softplus": lambda x, y, i, m, s: F.softplus(x) * y + F.softplus(x * 20, beta=2, threshold=5),
    "activations": lambda x, y, i, m, s: (
        F.gelu(x) + F.gelu(x, approximate="tanh") * y + F.silu(x) + F.sigmoid(x) + F.tanh(x)
    ),
    "mse_loss": lambda x, y, i, m, s: (
        F.mse_loss(x, y) + F.mse_loss(x, y, reduction="none") + F.mse_loss(x, y, reduction="sum")
    ),
    "l1_loss": lambda x, y, i, m, s: F.l1_loss(x, y) + F.l1_loss(x, y, reduction="none"),
    "huber_loss": lambda x, y, i, m, s: F.huber_loss(x, y) + F.huber_loss(x, y, reduction="none", delta=0.5),
    "smooth_l1_loss": lambda x, y, i, m, s: (
        F.smooth_l1_loss(x, y) + F.smooth_l1_loss(x, y, reduction="none", beta=2.0) + F.smooth_l1_loss(x, y, beta=0.0)
    ),
    "bce with logits": lambda x, y, i, m, s: (
        F.binary_cross_entropy_with_logits(x * 5, y.sigmoid())
        + F.binary_cross_entropy_with_logits(x, y, weight=y, pos_weight=y + 2, reduction="none")
    ),
    "kl_div": lambda x, y, i, m, s: (
        F.kl_div(x, y.abs(), reduction="none")
        + F.kl_div(x, y, log_target=True, reduction="batchmean")
        + F.kl_div(y, x.exp(), reduction="sum")
    ),
    # losses as people write them
    "ppo": lambda x, y, i, m, s: (
        -torch.minimum(torch.exp(x - y) * i, torch.clamp(torch.exp(x - y), 1 - 0.2, 1 + 0.2) * i)
    ),
    "k3": lambda x, y, i, m, s: torch.exp(y - x) - (y - x) - 1,
    "dpo": lambda x, y, i, m, s: -F.logsigmoid(0.1 * ((x * (y > 0)).sum() - s)),
    "masked mean": lambda x, y, i, m, s: (x * (y > 0)).sum() / (y > 0).sum().clamp(min=1),
}

MATRIX_CASES = {
    "sum along": lambda x, y, i, m, s: (
        x.sum(-1, keepdim=True) * m + x.sum(dim=(0, 1)) + x.sum(0) + torch.sum(x, [1])[0]
    ),
    "mean along": lambda x, y, i, m, s: x.mean(0) + x.mean(1, keepdim=True) * m + x.mean(axis=0, keepdims=True),
    "std along": lambda x, y, i, m, s: (
        x.std(0) + x.std(1, keepdim=True) * m + x.var(dim=(0, 1)) + x.std(1, False).sum()
    ),
    "norm along": lambda x, y, i, m, s: x.norm(dim=1, keepdim=True) * m + x.norm(p=1, dim=0) + x.norm(),
    "max along": lambda x, y, i, m, s: x.max(1, keepdim=True)[0] * m + x.max(dim=0).values + x.min(-1).indices.sum(),
    "amax along": lambda x, y, i, m, s: x.amax(1, keepdim=True) * m + x.amin(dim=0) + x.amax((0, 1)) + x.max(),
    "prod along": lambda x, y, i, m, s: x.prod(1, keepdim=True) * m + x.prod(0),
    "logsumexp along": lambda x, y, i, m, s: x.logsumexp(-1, keepdim=True) * m + x.logsumexp((0, 1)),
    "softmax along": lambda x, y, i, m, s: x.softmax(-1) * m + torch.log_softmax(x, 0),
    "cumsum along": lambda x, y, i, m, s: x.cumsum(1) * m + x.cumsum(0) + x.cumprod(1),
    "sort along": lambda x, y, i, m, s: (x + 3 * m).sort(1)[0] * m + (x + 3 * m).topk(2, dim=0).values.sum(0),
    "index": lambda x, y, i, m, s: x[0] + x[:, 1:2] * m + x[1, -1] + x[..., 0].sum() + x[None, 2:][0, 1],
    "index by tensor": lambda x, y, i, m, s: (
        x[i[:4] % 4] * m + x[i[:4] % 4, i[:4] % 3].sum() + x[:, i[:3] % 3] + x[1, i[:3] % 3] + x[..., i[1]][:, None]
    ),
    "gather": lambda x, y, i, m, s: x.gather(1, (i[:4] % 3)[:, None]) * m + torch.gather(x, 0, (i[:3] % 4)[None]),
    "index_select": lambda x, y, i, m, s: x.index_select(1, i[:3] % 3) * m + x.select(1, 0).sum(),
    "transpose": lambda x, y, i, m, s: (
        x.T.sum(1) + x.t()[0].sum() + x.transpose(0, 1).permute(1, 0) * m + x.mT[1].sum()
    ),
    "permute": lambda x, y, i, m, s: x.permute(1, 0).swapaxes(0, 1) * m + torch.permute(x[None], (0, 2, 1))[0].t(),
    "flatten": lambda x, y, i, m, s: x.flatten()[3:6] * m + x[None].flatten(1)[0, :3] + torch.flatten(x, 0, 1)[-3:],
    "matmul": lambda x, y, i, m, s: (
        x @ m.T @ m + torch.matmul(x.t(), m)[0] + x.mv(m[0]).sum() + torch.mm(x, m.t())[:, :3]
    ),
    "bmm": lambda x, y, i, m, s: (
        torch.bmm(x[None], m.t()[None])[0, :, :3] * m + torch.einsum("tk,tk->t", x, m)[:, None]
    ),
    "triangles": lambda x, y, i, m, s: x.tril() * m + torch.triu(x, 1) + x.diagonal().sum(),
    "pad": lambda x, y, i, m, s: F.pad(x, (1, 0, 0, 1))[:4, :3] * m,
    "roll": lambda x, y, i, m, s: x.roll(1, 0) * m + torch.roll(x, (1, 1), (0, 1)) + x.roll(2) + x.flip(0, 1) * m,
    "cat": lambda x, y, i, m, s: torch.cat([x, m], dim=1)[:, 2:5] * m + torch.stack([x, m], dim=2).sum(-1),
    "movedim": lambda x, y, i, m, s: x.movedim(0, 1).T * m + x.unsqueeze(1).squeeze(1).squeeze(0),
    "distillation": lambda x, y, i, m, s: -(m.softmax(-1) * x).sum(-1).mean(),
    "broadcast_tensors": lambda x, y, i, m, s: torch.broadcast_tensors(x[:, :1], m)[0] * m,
}

RANKS = {"logprobs": 2, "y": 1, "i": 1, "m": 2, "s": 0}


def scramble(out):
    """Reduce a result to one number in which every element counts differently."""
    return (out.float() * torch.cos(1.0 + torch.arange(out.numel()).reshape(out.shape))).sum()


@cache
def compare(table):
    """Evaluate all cases of a table here and in torch: by name both values and both gradients."""
    cases, start = TABLES[table]
    compared = {}
    for first in range(0, len(cases), GROUP):
        group = dict(list(cases.items())[first : first + GROUP])
        compiled, traced = rebuild(joined(group, start.shape), RANKS)
        logprobs = np.tile(start.reshape(-1), (len(group), 1))
        ours = compiled.evaluate(logprobs, INPUTS)
        leaf = torch.tensor(logprobs, requires_grad=True)
        total, metrics = traced(leaf, *(torch.tensor(value) for value in INPUTS.values()))
        total.backward()
        for row, name in enumerate(group):
            values = ours.metrics[metric(row)], metrics[metric(row)].item()
            compared[name] = (*values, ours.gradient[row], leaf.grad[row].numpy())
    return compared


def used(function):
    """The operations of a loss."""
    nodes, _ = trace(function, RANKS)
    tables = {"call_function": FUNCTIONS, "call_method": METHODS}
    return {tables[node.op][node.target] for node in nodes if node.op in tables}


def joined(group, shape):
    """One loss of many cases, each of which has its own row of the logprobs and its own metric."""

    def loss(logprobs, y, i, m, s):
        results = [scramble(case(logprobs[row].view(shape), y, i, m, s)) for row, case in enumerate(group.values())]
        return sum(results[1:], results[0]), {metric(row): result for row, result in enumerate(results)}

    return loss


def metric(row):
    return f"custom/{row}:sum"


TABLES = {"vector": (VECTOR_CASES, VECTOR), "matrix": (MATRIX_CASES, MATRIX)}
GROUP = 20  # cases in one program


@pytest.mark.parametrize(("table", "name"), [(table, name) for table, (cases, _) in TABLES.items() for name in cases])
def test_agrees_with_torch(table, name):
    value, expected_value, gradient, expected_gradient = compare(table)[name]
    assert value == pytest.approx(expected_value, rel=2e-5, abs=1e-5, nan_ok=True)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-5, atol=2e-5)


def test_every_operation_is_compared():
    compared = set().union(*(used(joined(cases, start.shape)) for cases, start in TABLES.values()))
    assert [name for name, operation in (FUNCTIONS | METHODS).items() if operation not in compared] == []
