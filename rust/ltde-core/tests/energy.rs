//! The energy-based policy through its public face: compositions, the rejection bound, the chain,
//! enumeration and means, whatever the networks are.

use ltde_core::energy::{ChainReport, Effort, EnergyPolicy, n_compositions};
use ltde_core::network::{Networks, Reading};
use ltde_core::rng::{Purpose, Rng, Seed, Words};
use ltde_core::watch::Watch;
use proptest::prelude::*;

/// Nobody interrupts.
fn watch() -> Watch<'static> {
    Watch::new(&|| false)
}

fn rng(seed: u64) -> Rng {
    Seed(seed).stream(Purpose::Team, 0, 0, 0)
}

/// One state: a network and how it is read.
#[derive(Debug, Clone)]
struct Case {
    theta: Vec<f64>,
    signs: Vec<f64>,
    mask: Vec<bool>,
    tau: f64,
    density_scale: f64,
    input_scale: f64,
    density: f64,
}

impl Case {
    fn actions(&self) -> usize {
        self.mask.len()
    }

    fn allowed(&self) -> Vec<usize> {
        (0..self.actions()).filter(|&a| self.mask[a]).collect()
    }

    fn policy(&self, effort: Effort) -> EnergyPolicy<'_, f64> {
        let shape = [1, self.signs.len(), 1 + self.actions()];
        let networks = Networks::new(&self.theta, &self.signs, shape).unwrap();
        let reading = Reading {
            mask: &self.mask,
            tau: self.tau,
            density_scale: self.density_scale,
            input_scale: self.input_scale,
        };
        EnergyPolicy::new(networks, reading, effort)
    }

    /// Inputs of the neurons at h (A,).
    fn inputs(&self, h: &[f64]) -> Vec<f64> {
        let rows = self.theta.chunks(1 + self.actions());
        rows.map(|row| {
            let x = row[0] * self.density_scale * self.density;
            let own: f64 = row[1..].iter().zip(h).map(|(w, h)| w * h).sum();
            self.input_scale * (x + own)
        })
        .collect()
    }

    /// tau f, Eq. (4.3), and the sum of the moduli of its terms.
    fn energy(&self, h: &[f64]) -> (f64, f64) {
        let scale = self.tau / (self.signs.len() as f64).sqrt();
        let (mut sum, mut size) = (0.0, 0.0);
        for (z, sign) in self.inputs(h).into_iter().zip(&self.signs) {
            sum += sign * z.max(0.0);
        }
        for row in self.theta.chunks(1 + self.actions()) {
            let terms = row[1..].iter().zip(h).map(|(w, h)| (w * h).abs());
            size += (row[0] * self.density_scale * self.density).abs() + terms.sum::<f64>();
        }
        (scale * sum, scale * self.input_scale * size)
    }

    /// Eq. (4.4) by enumeration: teams (A,) and probabilities.
    fn law(&self, n: u64) -> Vec<(Vec<u64>, f64)> {
        let teams = self.teams(n);
        let energies: Vec<f64> = teams
            .iter()
            .map(|team| self.energy(&shares(team)).0)
            .collect();
        let top = energies.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = energies.iter().map(|e| (e - top).exp()).sum();
        let probabilities = energies.iter().map(|e| (e - top).exp() / total);
        teams.clone().into_iter().zip(probabilities).collect()
    }

    /// All divisions of n over the allowed actions.
    fn teams(&self, n: u64) -> Vec<Vec<u64>> {
        let mut teams = vec![vec![]];
        for a in 0..self.actions() {
            let last = Some(&a) == self.allowed().last();
            let mut longer = Vec::new();
            for team in teams {
                let left = n - team.iter().sum::<u64>();
                let least = if last { left } else { 0 };
                let most = if self.mask[a] { left } else { 0 };
                for c in least.min(most)..=most {
                    let mut next: Vec<u64> = team.clone();
                    next.push(c);
                    longer.push(next);
                }
            }
            teams = longer;
        }
        teams
    }
}

fn shares(team: &[u64]) -> Vec<f64> {
    let n: u64 = team.iter().sum();
    team.iter().map(|&c| c as f64 / n as f64).collect()
}

const ENUMERATE: Effort = Effort {
    limit: u64::MAX,
    attempts: 1,
    moves: 1,
};

fn case(width: usize, actions: usize) -> impl Strategy<Value = Case> {
    let weights = prop::collection::vec(-3.0..3.0_f64, width * (1 + actions));
    let signs = prop_oneof![
        4 => prop::collection::vec(prop::bool::ANY.prop_map(|b| if b { 1.0 } else { -1.0 }), width),
        1 => Just(vec![1.0; width]),
        1 => Just(vec![-1.0; width]),
    ];
    let mask = prop::collection::vec(prop::bool::weighted(0.8), actions)
        .prop_filter("no action", |mask| mask.iter().any(|&m| m));
    let scales = (-2.0..2.0_f64, -1.0..2.0_f64, 0.3..3.0_f64, 0.0..=1.0_f64);
    (weights, signs, mask, scales, -2.0..1.0_f64, any::<bool>()).prop_map(
        move |(
            mut theta,
            mut signs,
            mask,
            (tau, density_scale, input_scale, density),
            gain,
            twin,
        )| {
            theta.iter_mut().for_each(|w| *w *= 10f64.powf(gain));
            if twin {
                // the symmetric start, slightly moved: large terms that cancel
                let half = signs.len() / 2;
                for m in 0..half {
                    signs[half + m] = -signs[m];
                    for i in 0..=actions {
                        theta[(half + m) * (1 + actions) + i] =
                            theta[m * (1 + actions) + i] * (1.0 + 1e-3 * i as f64);
                    }
                }
            }
            Case {
                theta,
                signs,
                mask,
                tau: 10f64.powf(tau),
                density_scale: 10f64.powf(density_scale),
                input_scale,
                density,
            }
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    (1..12_usize, 1..5_usize).prop_flat_map(|(width, actions)| case(width, actions))
}

/// Words that make the rejection propose `team` (over the allowed actions) and then compare with
/// a given uniform number; random words follow.
struct Scripted {
    words: Vec<u64>,
    at: usize,
    after: Rng,
}

impl Words for Scripted {
    fn next_word(&mut self) -> u64 {
        self.at += 1;
        match self.words.get(self.at - 1) {
            Some(&word) => word,
            None => self.after.next_word(),
        }
    }
}

fn proposing(team: &[u64], uniform: u64) -> Scripted {
    let bars = team.len() - 1;
    let places = team.iter().sum::<u64>() + bars as u64;
    let mut words = Vec::new();
    let mut bar = 0;
    for (i, &c) in team[..bars].iter().enumerate() {
        bar += c;
        // the word whose product with the range has `bar` as its high half, far from rejection
        let range = u128::from(places - (bars - i) as u64 + 1);
        words.push((((u128::from(bar) << 64) + (1 << 63)) / range) as u64);
        bar += 1;
    }
    words.push(uniform);
    Scripted {
        words,
        at: 0,
        after: rng(1),
    }
}

/// Whether the rejection accepts `team` (A,) against a given uniform word.
fn accepts(case: &Case, team: &[u64], uniform: u64) -> bool {
    let effort = Effort {
        limit: 0,
        attempts: 1,
        moves: 1,
    };
    let own: Vec<u64> = case.allowed().iter().map(|&a| team[a]).collect();
    let mut words = proposing(&own, uniform);
    let n = own.iter().sum();
    let report = case
        .policy(effort)
        .trace(0, case.density, n, 0, &mut words, &watch(), |_, _, _, _| {})
        .unwrap();
    assert_eq!(words.at, own.len(), "the script was not followed");
    assert_eq!(report.attempts, 1);
    report.exact
}

/// The word of the uniform number nearest to `u`.
fn word_of(u: f64) -> u64 {
    ((u * (1u64 << 52) as f64) as u64) << 12
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// exp(tau f - U) < 1 - 2^-53 for every team, so tau f < U: no peak is cut off.
    #[test]
    fn no_energy_exceeds_the_rejection_bound(case in cases(), n in 1..9_u64) {
        for team in case.teams(n) {
            prop_assert!(!accepts(&case, &team, u64::MAX), "{team:?}");
        }
    }

    /// The same for teams so large that they come near any point of the simplex.
    #[test]
    fn nor_anywhere_on_the_simplex(
        case in cases(),
        weights in prop::collection::vec(0.0..1.0_f64, 5),
        corner in 0..8_usize,
    ) {
        let n = 1_u64 << 50;
        let own = case.allowed();
        let mut team = vec![0; case.actions()];
        let total: f64 = own.iter().map(|&a| weights[a].powi(1 + corner as i32)).sum();
        for &a in &own {
            team[a] = (weights[a].powi(1 + corner as i32) / total * 0.99 * n as f64) as u64;
        }
        let missing = n - team.iter().sum::<u64>();
        team[own[corner % own.len()]] += missing;
        prop_assert!(!accepts(&case, &team, u64::MAX), "{team:?}");
    }

    /// Where f is convex the bound is its maximum, and the test above could fail: a bound lower by
    /// 1e-6 would.
    #[test]
    fn the_bound_of_a_convex_network_is_tight(mut case in cases()) {
        case.signs.fill(1.0);
        let own = case.allowed();
        let corners: Vec<Vec<u64>> = own
            .iter()
            .map(|&a| (0..case.actions()).map(|b| u64::from(b == a)).collect())
            .collect();
        let best = corners
            .iter()
            .max_by(|x, y| {
                let [x, y] = [x, y].map(|team| case.energy(&shares(team)).0);
                x.total_cmp(&y)
            })
            .unwrap();
        let top = case.energy(&shares(best)).0;
        let slack = 3e-9 * (1.0 + top.abs());
        prop_assert!(accepts(&case, best, word_of((-slack).exp())));
    }

    /// The acceptance probability of a team falls by exactly exp(tau f) from one to another.
    #[test]
    fn acceptance_follows_the_energy(mut case in cases(), n in 1..6_u64) {
        case.tau = case.tau.min(1.0);
        // bisect the uniform number at which each team is refused: exp(tau f - U)
        let threshold = |team: &[u64]| {
            let (mut low, mut high) = (0.0, 1.0);
            for _ in 0..50 {
                let middle = 0.5 * (low + high);
                if accepts(&case, team, word_of(middle)) { low = middle } else { high = middle }
            }
            0.5 * (low + high)
        };
        let teams = case.teams(n);
        let first = (threshold(&teams[0]), case.energy(&shares(&teams[0])));
        for team in &teams {
            let (t, (e, size)) = (threshold(team), case.energy(&shares(team)));
            prop_assert!(t <= 1.0);
            if t > 1e-6 && first.0 > 1e-6 {
                let ratio = (t / first.0).ln() - (e - first.1.0);
                prop_assert!(ratio.abs() < 1e-8 + 1e-13 * (size + first.1.1), "{ratio}");
            }
        }
    }

    /// Every draw divides n over the allowed actions, on every path, and says how it was made.
    #[test]
    fn draws_are_possible_and_reported(
        case in cases(),
        n in prop_oneof![1..40_u64, 1..=1_u64 << 53],
        limit in prop_oneof![Just(0), Just(1), Just(200), Just(2000)],
        attempts in 1..4_u32,
        moves in 1..50_u32,
        seed: u64,
    ) {
        let policy = case.policy(Effort { limit, attempts, moves });
        let mut out = vec![0; case.actions()];
        let report = policy.draw(0, case.density, n, &mut rng(seed), &mut out);
        prop_assert_eq!(out.iter().sum::<i64>(), n as i64);
        for (a, &c) in out.iter().enumerate() {
            prop_assert!(c >= 0 && (case.mask[a] || c == 0), "{out:?}");
        }
        let size = n_compositions(n, case.allowed().len());
        let certain = case.allowed().len() == 1;
        prop_assert_eq!(policy.is_exact(0, n), certain || size <= limit);
        if policy.is_exact(0, n) {
            prop_assert_eq!(report, ChainReport::default());
        } else {
            prop_assert!((1..=u64::from(attempts)).contains(&report.attempts));
            prop_assert!(report.exact || report.attempts == u64::from(attempts));
            let made = report.independent[0] + report.exchange[0];
            prop_assert_eq!(made, if report.exact { 0 } else { u64::from(moves) });
            prop_assert!(report.independent[1] <= report.independent[0]);
            prop_assert!(report.exchange[1] <= report.exchange[0]);
        }
        let mut again = vec![0; case.actions()];
        policy.draw(0, case.density, n, &mut rng(seed), &mut again);
        prop_assert_eq!(out, again);
    }

    /// Along a chain the agents stay n, masked actions stay empty, and the energy, which is updated
    /// move by move, stays that of the counts.
    #[test]
    fn a_chain_keeps_its_books(
        case in cases(),
        n in prop_oneof![1..40_u64, 1..=1_u64 << 53],
        seed: u64,
    ) {
        let effort = Effort { limit: 0, attempts: 1, moves: 1 };
        let moves = 300;
        let mut path = vec![vec![0_u64; case.actions()]; moves];
        let mut energies = vec![0.0; moves];
        let report = case.policy(effort).trace(
            0, case.density, n, moves as u64, &mut rng(seed), &watch(),
            |i, a, c, e| {
                path[i as usize][a] = c;
                energies[i as usize] = e;
            },
        ).unwrap();
        let mut changes = 0;
        for (i, (team, &energy)) in path.iter().zip(&energies).enumerate() {
            prop_assert_eq!(team.iter().sum::<u64>(), n);
            prop_assert!((0..case.actions()).all(|a| case.mask[a] || team[a] == 0));
            let (want, size) = case.energy(&shares(team));
            prop_assert!((energy - want).abs() <= 1e-12 * (1.0 + size), "{energy} {want}");
            changes += u64::from(i > 0 && path[i - 1] != *team);
        }
        let accepted = report.independent[1] + report.exchange[1];
        prop_assert!(changes <= accepted);
        if case.allowed().len() > 1 {
            prop_assert_eq!(report.independent[0] + report.exchange[0], moves as u64);
        }
    }

    /// E[h] and E[phi] by enumeration are those of the law; all probability is accounted for.
    #[test]
    fn enumerated_means_are_those_of_the_law(case in cases(), n in 1..8_u64) {
        let (width, inputs) = (case.signs.len(), 1 + case.actions());
        let mut action = vec![0.0; case.actions()];
        let mut feature = vec![0.0; width * inputs];
        let policy = case.policy(ENUMERATE);
        let report = policy.means(0, case.density, n, &mut rng(1), &watch(), &mut action, Some(&mut feature)).unwrap();
        prop_assert_eq!(report, ChainReport::default());
        let (mut mean, mut phi) = (vec![0.0; case.actions()], vec![0.0; width * inputs]);
        let (mut largest, mut near) = (0.0_f64, false);
        for (team, p) in case.law(n) {
            let h = shares(&team);
            let x: Vec<f64> = std::iter::once(case.density_scale * case.density)
                .chain(h.iter().copied())
                .map(|x| x * case.input_scale)
                .collect();
            for (m, z) in case.inputs(&h).into_iter().enumerate() {
                near |= z.abs() < 1e-9; // on an edge of a ReLU rounding decides
                for (i, &x) in x.iter().enumerate() {
                    let gate = if z > 0.0 { case.signs[m] / (width as f64).sqrt() } else { 0.0 };
                    phi[m * inputs + i] += p * gate * x;
                    largest = largest.max(x);
                }
            }
            mean.iter_mut().zip(&h).for_each(|(sum, h)| *sum += p * h);
        }
        let size = case.law(n).iter().map(|(t, _)| case.energy(&shares(t)).1).fold(0.0, f64::max);
        let tolerance = 1e-12 + 1e-14 * size;
        for (got, want) in action.iter().zip(&mean) {
            prop_assert!((got - want).abs() <= tolerance, "{action:?} {mean:?}");
        }
        for (got, want) in feature.iter().zip(&phi) {
            prop_assert!(near || (got - want).abs() <= tolerance * (1.0 + largest));
        }
    }

    /// The mean along a chain is a mean of possible teams.
    #[test]
    fn means_along_a_chain_are_means(case in cases(), n in 1..=1_u64 << 53, seed: u64) {
        let effort = Effort { limit: 0, attempts: 1, moves: 5 };
        let mut action = vec![0.0; case.actions()];
        let mut feature = vec![0.0; case.theta.len()];
        case.policy(effort).means(0, case.density, n, &mut rng(seed), &watch(), &mut action, Some(&mut feature)).unwrap();
        prop_assert!((action.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        for (a, &mean) in action.iter().enumerate() {
            prop_assert!((0.0..=1.0 + 1e-12).contains(&mean) && (case.mask[a] || mean == 0.0));
        }
        prop_assert!(feature.iter().all(|x| x.is_finite()));
    }

    /// C(n + A - 1, A - 1) by Pascal's rule, and saturation instead of overflow.
    #[test]
    fn compositions_are_counted(n in 0..60_u64, actions in 1..8_usize) {
        let mut row = vec![1_u128; n as usize + 1];
        for _ in 1..actions {
            for i in 1..row.len() {
                row[i] += row[i - 1];
            }
        }
        prop_assert_eq!(u128::from(n_compositions(n, actions)), row[n as usize]);
    }
}

#[test]
fn compositions_of_very_many_saturate() {
    assert_eq!(n_compositions(1 << 53, 2), (1 << 53) + 1);
    assert_eq!(n_compositions(1 << 53, 3), u64::MAX);
    assert_eq!(n_compositions(1 << 53, 50), u64::MAX);
    assert_eq!(n_compositions(u64::MAX - 10, 5), u64::MAX);
    assert_eq!(n_compositions(10, 1), 1);
    assert_eq!(n_compositions(0, 7), 1);
}

/// Pearson's statistic of draws against a law, and the value that it exceeds with probability
/// about 1e-9 (Wilson and Hilferty).
fn chi2(law: &[(Vec<u64>, f64)], seen: &std::collections::HashMap<Vec<u64>, u64>) -> (f64, f64) {
    let draws = seen.values().sum::<u64>() as f64;
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rest, mut rest_seen) = (0.0, 0.0);
    for (team, p) in law {
        let (expected, got) = (draws * p, *seen.get(team).unwrap_or(&0) as f64);
        if expected < 50.0 {
            rest += expected;
            rest_seen += got;
        } else {
            statistic += (got - expected).powi(2) / expected;
            cells += 1;
        }
    }
    if rest > 10.0 {
        statistic += (rest_seen - rest).powi(2) / rest;
        cells += 1;
    }
    let k = f64::from(cells - 1);
    let limit = k * (1.0 - 2.0 / (9.0 * k) + 6.0 * (2.0 / (9.0 * k)).sqrt()).powi(3);
    (statistic, limit)
}

fn example() -> Case {
    Case {
        theta: vec![
            0.3, 2.0, -1.0, 0.5, //
            -0.2, -1.5, 2.5, 1.0, //
            0.1, 1.0, 1.0, -2.0, //
            0.4, -1.0, 0.3, 1.8,
        ],
        signs: vec![1.0, 1.0, -1.0, -1.0],
        mask: vec![true; 3],
        tau: 3.0,
        density_scale: 2.0,
        input_scale: 1.0,
        density: 0.4,
    }
}

/// 200,000 draws by enumeration, by rejection, and after one and three moves of the chain from an
/// exact draw: each has the law, as Metropolis' rule promises. Chi-square at 1e-9; a relative
/// error of 3 % everywhere has non-centrality 180. The mutant law has another tau.
#[test]
fn every_way_of_drawing_has_the_law_and_moves_keep_it() {
    let case = example();
    let (n, draws) = (8, 200_000);
    let law = case.law(n);
    let mutant = Case {
        tau: 2.85,
        ..example()
    }
    .law(n);
    let exact = Effort {
        limit: 0,
        attempts: u32::MAX,
        moves: 1,
    };
    let sampler = |way: usize, seed: u64| {
        let mut rng = rng(seed);
        let mut team = vec![0_u64; 3];
        match way {
            0 | 1 => {
                let mut out = vec![0; 3];
                let effort = if way == 0 { ENUMERATE } else { exact };
                case.policy(effort)
                    .draw(0, case.density, n, &mut rng, &mut out);
                team = out.into_iter().map(|c| c as u64).collect();
            }
            _ => {
                let moves = if way == 2 { 1 } else { 3 };
                let policy = case.policy(exact);
                let report = policy
                    .trace(
                        0,
                        case.density,
                        n,
                        moves,
                        &mut rng,
                        &watch(),
                        |_, a, c, _| {
                            team[a] = c;
                        },
                    )
                    .unwrap();
                assert!(report.exact);
            }
        }
        team
    };
    for way in 0..4 {
        let mut seen = std::collections::HashMap::new();
        for i in 0..draws {
            *seen.entry(sampler(way, i)).or_default() += 1;
        }
        let (statistic, limit) = chi2(&law, &seen);
        assert!(statistic < limit, "way {way}: {statistic} of {limit}");
        let (statistic, limit) = chi2(&mutant, &seen);
        assert!(
            statistic > limit,
            "way {way}: mutant {statistic} of {limit}"
        );
    }
}

/// Proposals are uniform over all compositions: a flat law accepts the first.
#[test]
fn a_flat_law_is_uniform_and_accepted_at_once() {
    let mut case = example();
    case.theta.fill(0.0);
    let effort = Effort {
        limit: 0,
        attempts: 1,
        moves: 1,
    };
    let law = case.law(5);
    let mut seen = std::collections::HashMap::new();
    for i in 0..100_000 {
        let mut out = vec![0; 3];
        let report = case
            .policy(effort)
            .draw(0, case.density, 5, &mut rng(i), &mut out);
        assert!(report.exact);
        let team: Vec<u64> = out.into_iter().map(|c| c as u64).collect();
        *seen.entry(team).or_default() += 1;
    }
    let (statistic, limit) = chi2(&law, &seen);
    assert!(law.iter().all(|(_, p)| (p - 1.0 / 21.0).abs() < 1e-15));
    assert!(statistic < limit, "{statistic} of {limit}");
}
