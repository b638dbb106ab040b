//! Elementary functions that vectorise: branch-free, on plain `f64`, meant to be inlined into multiversioned loops.
//!
//! The functions of the mathematics library are called one value at a time, which costs more than all the rest of a
//! kernel that needs an exponential per element. `FMA` says whether the code around it is compiled for a processor with
//! fused multiply-add; on any other the fused product would be a slow call.

use std::f64::consts::{FRAC_PI_2, LOG2_E};

/// `ln 2` in two parts; a multiple of the first below `2^20` is exact.
const LN2: (f64, f64) = (6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10);
/// Adding it rounds to the nearest integer, which then stands in the lowest bits.
const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52

/// `exp` on `|x| <= ln(2) / 2`: Chebyshev interpolation, relative error 4e-18.
const EXP: [f64; 12] = [
    1.0,
    1.0,
    0.500_000_000_000_001_8,
    0.166_666_666_666_666_8,
    0.041_666_666_666_488_1,
    0.008_333_333_333_319_6,
    0.001_388_888_895_231_477_5,
    0.000_198_412_698_900_471_14,
    2.480_148_548_232_849e-5,
    2.755_724_091_857_897e-6,
    2.763_263_963_904_103e-7,
    2.511_003_760_596_377_8e-8,
];

/// `sin(pi/2 x) / x` in powers of `x^2`, on `|x| <= 1/2`: relative error 2e-21.
const SIN: [f64; 8] = [
    FRAC_PI_2,
    -0.645_964_097_506_246_3,
    0.079_692_626_246_166_92,
    -0.004_681_754_135_314_827,
    0.000_160_441_184_726_672_3,
    -3.598_842_717_144_858e-6,
    5.691_927_850_489_634e-8,
    -6.627_624_938_992_472e-10,
];

/// `cos(pi/2 x)` in powers of `x^2`, on `|x| <= 1/2`: relative error 4e-20.
const COS: [f64; 8] = [
    1.0,
    -1.233_700_550_136_169_8,
    0.253_669_507_901_046_7,
    -0.020_863_480_763_311_21,
    0.000_919_260_274_183_155_7,
    -2.520_203_677_046_026e-5,
    4.710_609_726_757_823e-7,
    -6.321_256_869_628_589e-9,
];

/// `a * b + c`, in one rounding where `FMA`.
#[inline(always)]
pub(crate) fn fused<const FMA: bool>(a: f64, b: f64, c: f64) -> f64 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `coefficients[0] + coefficients[1] x + ...`
#[inline(always)]
fn polynomial<const FMA: bool, const N: usize>(coefficients: [f64; N], x: f64) -> f64 {
    let mut sum = coefficients[N - 1];
    for i in (0..N - 1).rev() {
        sum = fused::<FMA>(sum, x, coefficients[i]);
    }
    sum
}

/// `exp(x)` for `x <= 700`, to 3e-16 relative; 0 below -708, where the result would be subnormal.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f64) -> f64 {
    let clamped = if x < -708.0 { -708.0 } else { x };
    let shifted = fused::<FMA>(clamped, LOG2_E, ROUND);
    let n = shifted - ROUND;
    let rest = fused::<FMA>(n, -LN2.1, fused::<FMA>(n, -LN2.0, clamped));
    let bits = polynomial::<FMA, 12>(EXP, rest).to_bits();
    let scaled = f64::from_bits(bits.wrapping_add(shifted.to_bits() << 52));
    if x < -708.0 { 0.0 } else { scaled }
}

/// Sine and cosine of `x` quarter turns, for `|x| < 2^51`, to 3e-16 absolute.
#[inline(always)]
pub(crate) fn sin_cos_of_quarters<const FMA: bool>(x: f64) -> (f64, f64) {
    let shifted = x + ROUND;
    let rest = x - (shifted - ROUND);
    let square = rest * rest;
    let sin = rest * polynomial::<FMA, 8>(SIN, square);
    let cos = polynomial::<FMA, 8>(COS, square);
    let quarter = shifted.to_bits();
    let odd = quarter & 1 == 1;
    let (first, second) = (if odd { cos } else { sin }, if odd { sin } else { cos });
    let (minus_first, minus_second) = ((quarter & 2) << 62, (quarter.wrapping_add(1) & 2) << 62);
    (f64::from_bits(first.to_bits() ^ minus_first), f64::from_bits(second.to_bits() ^ minus_second))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exp_is_that_of_the_library_to_the_last_bits() {
        for i in 0..=200_000 {
            let x = -708.0 + f64::from(i) * (1408.0 / 200_000.0);
            let expected = x.exp();
            for found in [exp::<true>(x), exp::<false>(x)] {
                assert!((found / expected - 1.0).abs() < 1e-15, "exp({x}) = {expected}, found {found}");
            }
        }
        assert_eq!((exp::<true>(0.0), exp::<false>(0.0)), (1.0, 1.0));
        assert_eq!((exp::<true>(-1e3), exp::<false>(f64::NEG_INFINITY)), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn sine_and_cosine_are_those_of_the_library(x in prop_oneof![-5.0..5.0_f64, -1e3..1e3_f64]) {
            let turn = x.rem_euclid(4.0) * std::f64::consts::FRAC_PI_2;
            for (sin, cos) in [sin_cos_of_quarters::<true>(x), sin_cos_of_quarters::<false>(x)] {
                prop_assert!((sin - turn.sin()).abs() < 2e-15, "{} {}", sin, turn.sin());
                prop_assert!((cos - turn.cos()).abs() < 2e-15, "{} {}", cos, turn.cos());
            }
        }
    }
}
