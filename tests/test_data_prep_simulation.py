"""Simulated studies: a truth that fits its images, and no shortcut to it."""

from __future__ import annotations

import numpy as np
import pytest

from autopet.components import label_components
from data_prep.anatomy import Habitus
from data_prep.imaging import SCANNERS
from data_prep.phantom import Patient, plan
from data_prep.simulation import SimulatedStudy, simulate
from data_prep.tissues import Tissue


def study_of(patient: Patient) -> SimulatedStudy:
    habitus = Habitus.sample(patient.generator("habitus"), male=patient.sex == "M")
    scanner = SCANNERS[patient.centre, "small"]
    rng = patient.generator("study")
    return simulate(rng, scanner=scanner, tracer=patient.tracer, diagnosis=patient.diagnosis, habitus=habitus)


@pytest.fixture(scope="module")
def studies() -> list[tuple[Patient, SimulatedStudy]]:
    return [
        (patient, study_of(patient))
        for patient in plan(12, seed=5, size="small", tracer="mixed", positive_fraction=0.75)
    ]


def test_lesions_are_within_range_and_in_the_mask(studies):
    for patient, study in studies:
        assert study.mask.same_grid(study.pet)
        assert (1 <= len(study.lesions) <= 12) if patient.positive else not study.lesions
        assert int(study.mask.array.sum()) == sum(lesion.voxels for lesion in study.lesions)
        for lesion in study.lesions:
            assert 0.1 <= lesion.volume_ml <= 100
            assert lesion.voxels >= 1
            assert 0.8 <= lesion.suv <= 60
    volumes = [lesion.volume_ml for _, study in studies for lesion in study.lesions]
    assert 3 < np.median(volumes) < 10


def test_every_lesion_is_a_component_of_its_own(studies):
    for _, study in studies:
        _, count = label_components(study.mask.array)
        assert count >= len(study.lesions)  # an irregular lesion may itself break up


def test_most_lesions_are_hotter_than_what_surrounds_them(studies):
    hotter = []
    for _, study in studies:
        z, y, x = np.indices(study.pet.shape, sparse=True)
        for lesion in study.lesions:
            k, j, i = ((np.array(lesion.centre_mm) - study.pet.origin_mm) / study.pet.spacing_mm)[::-1]
            near = (abs(z - k) < 8) & (abs(y - j) < 8) & (abs(x - i) < 8) & (study.mask.array == 0)
            peak = study.pet.array[tuple(round(v) for v in (k, j, i))]
            hotter.append(peak > np.median(study.pet.array[near]))
    assert np.mean(hotter) > 0.9


def test_organs_are_as_hot_as_the_tracer_wants(studies):
    for patient, study in studies:
        labels, pet = study.labels.array, study.pet.array
        free = study.mask.array == 0

        def mean(tissue, labels=labels, pet=pet, free=free):
            return pet[(labels == tissue) & free].mean()

        assert mean(Tissue.URINE) > mean(Tissue.LIVER) > mean(Tissue.MUSCLE) > mean(Tissue.AIR)
        if patient.tracer == "PSMA":
            assert mean(Tissue.KIDNEY) > mean(Tissue.LIVER) > mean(Tissue.BLOOD)
            assert mean(Tissue.SALIVARY) > mean(Tissue.LIVER)
        elif study.habitus.from_vertex:
            assert mean(Tissue.BRAIN) > 3 * mean(Tissue.BLOOD)


def test_no_threshold_segments_the_cohort(studies):
    def dice(study, threshold):
        hot, mask = study.pet.array > threshold, study.mask.array > 0
        return 2 * (hot & mask).sum() / (hot.sum() + mask.sum())

    positive = [study for patient, study in studies if patient.positive]
    assert max(np.mean([dice(study, t) for study in positive]) for t in (2, 3, 4, 6, 8, 12)) < 0.4
