//! The two floating-point types that kernels are generic over.

/// `f32` or `f64`: what kernels read and write; sums are kept in `f64` for both.
pub trait Float: Copy + PartialOrd + Send + Sync + 'static {
    /// Not a number: a missing value.
    const NAN: Self;
    /// Positive infinity.
    const INFINITY: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;

    /// The same value in double precision.
    fn to_f64(self) -> f64;

    /// The nearest value of this type.
    fn from_f64(value: f64) -> Self;

    /// Whether the value is missing.
    fn is_nan(self) -> bool;
}

macro_rules! implement {
    ($type:ty) => {
        impl Float for $type {
            const NAN: Self = <$type>::NAN;
            const INFINITY: Self = <$type>::INFINITY;
            const NEG_INFINITY: Self = <$type>::NEG_INFINITY;

            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as Self
            }

            #[inline(always)]
            fn is_nan(self) -> bool {
                <$type>::is_nan(self)
            }
        }
    };
}

implement!(f32);
implement!(f64);
