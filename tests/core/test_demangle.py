"""Readable names of functions, from whatever a module calls them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trio_wasmcache._core.demangle import MAX_NAME, demangle

HASH = "17h0123456789abcdefE"


@pytest.mark.parametrize(
    ("mangled", "name"),
    [
        (f"_ZN4core9panicking5panic{HASH}", "core::panicking::panic"),
        (
            f"_ZN60_$LT$alloc..string..String$u20$as$u20$core..fmt..Display$GT$3fmt{HASH}",
            "<alloc::string::String as core::fmt::Display>::fmt",
        ),
        (f"_ZN3app4main28_$u7b$$u7b$closure$u7d$$u7d${HASH}", "app::main::{{closure}}"),
        ("_RNvC7mycrate3foo", "mycrate::foo"),
        ("_RNvCs1234_7mycrate3foo", "mycrate::foo"),
        # Trait objects and function pointers, as rustc 1.63 writes them.
        ("_RINvCsfNH4D3fjF3Z_3fnp2dyDNtB2_3FooEL_EB2_", "fnp::dy::<dyn fnp::Foo>"),
        (
            (
                "_RINvNtCs4EoLUFkKuUC_4core3ptr13drop_in_placeINtNtCs9tm3sCXHW8O_5alloc5boxed3Box"
                "DNtCsfNH4D3fjF3Z_3fnp3FooNtNtB4_6marker4SendEL_EEB1i_"
            ),
            "core::ptr::drop_in_place::<alloc::boxed::Box::<dyn fnp::Foo + core::marker::Send>>",
        ),
        (
            (
                "_RINvCsfNH4D3fjF3Z_3fnp2dyDNtNtNtNtCs4EoLUFkKuUC_4core4iter6traits8iterator8Iterator"
                "p4ItemxEL_EB2_"
            ),
            "fnp::dy::<dyn core::iter::traits::iterator::Iterator::<Item = i64>>",
        ),
        (
            (
                "_RINvCsfNH4D3fjF3Z_3fnp4callDINtNtNtCs4EoLUFkKuUC_4core3ops8function2FnTxEEp6Output"
                "xEL_EB2_"
            ),
            "fnp::call::<dyn core::ops::function::Fn::<(i64,), Output = i64>>",
        ),
        ("_RINvCsfNH4D3fjF3Z_3fnp2dyFUKClElEB2_", 'fnp::dy::<unsafe extern "C" fn(i32) -> i32>'),
        ("_RINvCsfNH4D3fjF3Z_3fnp2dyFxExEB2_", "fnp::dy::<fn(i64) -> i64>"),
        ("_RINvC1a1bFEuE", "a::b::<fn()>"),
        ("_RINvC3fnp2kkKc78_Kb1_Kan3_E", "fnp::kk::<'x', true, -3>"),
        # The hash of a crate as rustc writes it: 64 bits, mostly eleven digits.
        ("_RNvNtNtCsidHDQfDTxtx_1r4deep2er6lookup", "r::deep::er::lookup"),
        ("_RNvMCsidHDQfDTxtx_1rINtB2_4CartxE2atB2_", "<r::Cart::<i64>>::at"),
        ("_RNvNtC7mycrate3mod3bar", "mycrate::mod::bar"),
        ("_RNCNvC7mycrate3foo0B3_", "mycrate::foo::{closure}"),
        ("_RINvNtC3std3mem8align_ofdE", "std::mem::align_of::<f64>"),
        ("_RINvC1a1bReAhj10_TlmEE", "a::b::<&str, [u8; 16], (i32, u32)>"),
        ("_RNvMC7mycrateNtB2_3Foo3new", "<mycrate::Foo>::new"),
        (
            "_RNvXs_C7mycrateNtB4_3FooNtNtC4core3fmt5Debug3fmt",
            "<mycrate::Foo as core::fmt::Debug>::fmt",
        ),
        ("_Z3addii", "add"),
        ("_ZN3foo3barEv", "foo::bar"),
        ("_ZN3FooC2Ev", "Foo::Foo"),
        ("_ZN3FooD1Ev", "Foo::~Foo"),
        ("_ZNK3FooplERKS_", "Foo::operator+"),
        ("_ZSt9terminatev", "std::terminate"),
        ("_ZNSt6vectorIiSaIiEE9push_backEOi", "std::vector<...>"),
        ("_ZN12_GLOBAL__N_11fEv", "(anonymous namespace)::f"),
    ],
)
def test_mangled_names_are_readable(mangled: str, name: str) -> None:
    """Of Rust, in both of its schemes, and of C++, without what needs all of its grammar."""
    assert demangle(mangled) == name


@pytest.mark.parametrize(
    "name",
    ["", "main", "_R", "_Z", "_ZN", "_RB_", "_RNvB_1a", "_Zoo", "_Remove", "_ZN99abcE", "_ZL"],
)
def test_other_names_stay_as_they_are(name: str) -> None:
    """Those of C and Go, and those that only begin as if they were mangled."""
    assert demangle(name) == name


@pytest.mark.parametrize(
    "bomb",
    [
        "_RINvC1a1b" + "TB8_" * 200 + "E",  # each refers to what came before
        "_RINvC1a1b" + "T" * 900,
        "_RINvC1a1bTllETB9_B9_B9_B9_ETBe_Be_Be_Be_ETBs_Bs_Bs_Bs_EE",
        "_R" + "Y" * 900,
        "_RINvC1a1b" + "DC1aC1bEL_" * 95 + "E",
        "_RINvC1a1b" + "F" * 900,
        "_ZN" + "1a" * 490 + "E",
        "_ZNSt" + "I" * 990,
    ],
)
def test_names_that_would_be_endless_are_bounded(bomb: str) -> None:
    """Back references can double a name each time."""
    assert len(demangle(bomb)) <= max(MAX_NAME, len(bomb))


@given(
    st.sampled_from(("_R", "_ZN", "_Z", "_RNv", "_RINvC1a1b", "_RINvC1a1bD", "_RINvC1a1bF")),
    st.text(max_size=60),
)
def test_any_text_gives_text(prefix: str, text: str) -> None:
    """Never an exception."""
    assert isinstance(demangle(prefix + text), str)


@given(st.text("CNMXYIBEabvst_0123RQPSATLKpFUDG", max_size=80))
def test_any_path_gives_text(text: str) -> None:
    """Of the letters that the grammar is made of."""
    assert len(demangle(f"_R{text}")) <= MAX_NAME
