"""Tables behind the patterns of personal data: calling codes, card issuers, IBAN lengths, keys.

Sources: ITU-T E.164 list of assigned country codes; ISO/IEC 7812 issuer ranges as the card schemes
publish them; the SWIFT IBAN registry; the key forms that their issuers document. Data alone.
"""

from __future__ import annotations

from typing import Final

_CODES: Final = (
    # One-digit codes (7) are told by their second digit.
    "20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 "
    "65 66 81 82 84 86 90 91 92 93 94 95 98 70 71 72 73 74 75 76 77 78 79 211 212 213 216 218 220 "
    "221 222 223 224 225 226 227 228 229 230 231 232 233 234 235 236 237 238 239 240 241 242 243 "
    "244 245 246 247 248 249 250 251 252 253 254 255 256 257 258 260 261 262 263 264 265 266 267 "
    "268 269 290 291 297 298 299 350 351 352 353 354 355 356 357 358 359 370 371 372 373 374 375 "
    "376 377 378 379 380 381 382 383 385 386 387 389 420 421 423 500 501 502 503 504 505 506 507 "
    "508 509 590 591 592 593 594 595 596 597 598 599 670 672 673 674 675 676 677 678 679 680 681 "
    "682 683 685 686 687 688 689 690 691 692 800 808 850 852 853 855 856 870 878 880 881 882 883 "
    "886 888 960 961 962 963 964 965 966 967 968 970 971 972 973 974 975 976 977 979 992 993 994 "
    "995 996 998 "
)
CALLING_CODES: Final = frozenset(_CODES.split())


def _card_lengths() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {"4": (13, 16, 19), "34": (15,), "37": (15,)}
    table |= {str(n): (16,) for n in range(51, 56)}
    table |= {str(n): (16,) for n in range(2221, 2721)}
    table |= {"6011": (16, 17, 18, 19), "65": (16, 17, 18, 19)}
    table |= {str(n): (16, 17, 18, 19) for n in range(644, 650)}
    table |= {str(n): (16, 17, 18, 19) for n in range(3528, 3590)}
    table |= {str(n): (14, 16, 17, 18, 19) for n in (300, 301, 302, 303, 304, 305, 36, 38, 39)}
    table |= {"62": (16, 17, 18, 19), "2200": (16,), "2201": (16,), "2202": (16,), "2203": (16,)}
    table |= {str(n): (12, 13, 14, 15, 16, 17, 18, 19) for n in (50, 56, 57, 58, 63, 67)}
    return table


# First digits of a card number -> its possible lengths; the longest match counts.
CARD_LENGTHS: Final = _card_lengths()

_IBANS: Final = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 "
    "DK18 DO28 EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 "
    "IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 "
    "MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
    "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30 "
)
IBAN_LENGTHS: Final = {item[:2]: int(item[2:]) for item in _IBANS.split()}

KEY_PATTERNS: Final = (
    r"-----BEGIN (?:[A-Z]{2,12} ){0,3}PRIVATE KEY-----[\s\S]{20,8000}?"
    r"-----END (?:[A-Z]{2,12} ){0,3}PRIVATE KEY-----",
    r"\beyJ[A-Za-z0-9_-]{8,2000}\.eyJ[A-Za-z0-9_-]{8,4000}\.[A-Za-z0-9_-]{8,2000}",
    r"\b[sp]k-lf-[0-9a-f-]{30,40}",
    r"\bsk-[A-Za-z0-9_-]{20,200}",
    r"\b(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,200}",
    r"\bwhsec_[A-Za-z0-9]{20,100}",
    r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    r"\bgh[pousr]_[A-Za-z0-9]{36,255}",
    r"\bgithub_pat_[A-Za-z0-9_]{22,255}",
    r"\bglpat-[A-Za-z0-9_-]{20,100}",
    r"\bxox[abeprs]-[A-Za-z0-9-]{10,250}",
    r"https://hooks\.slack\.com/services/[A-Za-z0-9/]{20,100}",
    r"\bAIza[0-9A-Za-z_-]{35}",
    r"\bya29\.[0-9A-Za-z_-]{20,400}",
    r"\bhf_[A-Za-z0-9]{30,60}",
    r"\bnpm_[A-Za-z0-9]{36}",
    r"\bpypi-[A-Za-z0-9_-]{50,400}",
    r"\bSG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",
    r"\bSK[0-9a-f]{32}\b",
    r"\b\d{8,10}:AA[A-Za-z0-9_-]{32,34}",
    r"\br8_[A-Za-z0-9]{30,60}",
    r"\bgsk_[A-Za-z0-9]{40,60}",
    r"\bdop_v1_[0-9a-f]{64}",
    r"\bshp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    r"\bdapi[0-9a-f]{32}",
    r"\bxai-[A-Za-z0-9]{40,120}",
    r"\bpplx-[A-Za-z0-9]{32,64}",
    r"\bnvapi-[A-Za-z0-9_-]{40,100}",
    r"(?<=[Bb]earer )\s*[A-Za-z0-9._~+/-]{20,2000}=*",
)

# Every key of the forms above holds one of these.
KEY_SIGNS: Final = (
    "PRIVATE KEY",
    "eyJ",
    "k-lf-",
    "sk-",
    "_live_",
    "_test_",
    "whsec_",
    "AKIA",
    "ASIA",
    "ABIA",
    "ACCA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "xox",
    "hooks.slack.com",
    "AIza",
    "ya29.",
    "hf_",
    "npm_",
    "pypi-",
    "SG.",
    "SK",
    ":AA",
    "r8_",
    "gsk_",
    "dop_v1_",
    "shpat_",
    "shpca_",
    "shppa_",
    "shpss_",
    "dapi",
    "xai-",
    "pplx-",
    "nvapi-",
    "earer ",
)
