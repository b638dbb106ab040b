//! Regridding between rectilinear latitude-longitude grids.

mod conservative;
mod runs;
mod turns;

pub use conservative::regrid_conservative;
pub use runs::Runs;
