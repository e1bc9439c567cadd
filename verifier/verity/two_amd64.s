#include "textflag.h"

// func cpuid(leaf uint32) (eax, ebx uint32)
TEXT ·cpuid(SB), NOSPLIT, $0-16
	MOVL leaf+0(FP), AX
	XORL CX, CX
	CPUID
	MOVL AX, eax+8(FP)
	MOVL BX, ebx+12(FP)
	RET

// The constants of the 64 rounds (FIPS 180-4, 4.2.2).
DATA rounds<>+0(SB)/8, $0x71374491428a2f98
DATA rounds<>+8(SB)/8, $0xe9b5dba5b5c0fbcf
DATA rounds<>+16(SB)/8, $0x59f111f13956c25b
DATA rounds<>+24(SB)/8, $0xab1c5ed5923f82a4
DATA rounds<>+32(SB)/8, $0x12835b01d807aa98
DATA rounds<>+40(SB)/8, $0x550c7dc3243185be
DATA rounds<>+48(SB)/8, $0x80deb1fe72be5d74
DATA rounds<>+56(SB)/8, $0xc19bf1749bdc06a7
DATA rounds<>+64(SB)/8, $0xefbe4786e49b69c1
DATA rounds<>+72(SB)/8, $0x240ca1cc0fc19dc6
DATA rounds<>+80(SB)/8, $0x4a7484aa2de92c6f
DATA rounds<>+88(SB)/8, $0x76f988da5cb0a9dc
DATA rounds<>+96(SB)/8, $0xa831c66d983e5152
DATA rounds<>+104(SB)/8, $0xbf597fc7b00327c8
DATA rounds<>+112(SB)/8, $0xd5a79147c6e00bf3
DATA rounds<>+120(SB)/8, $0x1429296706ca6351
DATA rounds<>+128(SB)/8, $0x2e1b213827b70a85
DATA rounds<>+136(SB)/8, $0x53380d134d2c6dfc
DATA rounds<>+144(SB)/8, $0x766a0abb650a7354
DATA rounds<>+152(SB)/8, $0x92722c8581c2c92e
DATA rounds<>+160(SB)/8, $0xa81a664ba2bfe8a1
DATA rounds<>+168(SB)/8, $0xc76c51a3c24b8b70
DATA rounds<>+176(SB)/8, $0xd6990624d192e819
DATA rounds<>+184(SB)/8, $0x106aa070f40e3585
DATA rounds<>+192(SB)/8, $0x1e376c0819a4c116
DATA rounds<>+200(SB)/8, $0x34b0bcb52748774c
DATA rounds<>+208(SB)/8, $0x4ed8aa4a391c0cb3
DATA rounds<>+216(SB)/8, $0x682e6ff35b9cca4f
DATA rounds<>+224(SB)/8, $0x78a5636f748f82ee
DATA rounds<>+232(SB)/8, $0x8cc7020884c87814
DATA rounds<>+240(SB)/8, $0xa4506ceb90befffa
DATA rounds<>+248(SB)/8, $0xc67178f2bef9a3f7
GLOBL rounds<>(SB), RODATA|NOPTR, $256

// The words of a message are big-endian.
DATA turn<>+0(SB)/8, $0x0405060700010203
DATA turn<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL turn<>(SB), RODATA|NOPTR, $16

// Four rounds with the words in m; abef and cdgh are the state.
#define FIRST(at, m) \
	MOVOU at(AX), X0 \
	PADDD m, X0

#define TWO(abef, cdgh) \
	SHA256RNDS2 X0, abef, cdgh

#define REST(abef, cdgh) \
	PSHUFD $0x0e, X0, X0 \
	SHA256RNDS2 X0, cdgh, abef

// The words of the group after m's, of which the first half was made before: of before, the
// group before m's, the last word counts.
#define NEXT(before, m, next, t) \
	MOVO m, t \
	PALIGNR $4, before, t \
	PADDD t, next \
	SHA256MSG2 m, next

#define LOAD(at, from, m) \
	MOVOU at(from), m \
	PSHUFB X15, m

// Groups of four rounds: the first of all, one that only begins new words, one that
// ends them and begins others, one that only ends them, and the last of all.
#define G0(at, m, abef, cdgh) \
	FIRST(at, m) \
	TWO(abef, cdgh) \
	REST(abef, cdgh)

#define G1(at, before, m, abef, cdgh) \
	G0(at, m, abef, cdgh) \
	SHA256MSG1 m, before

#define G3(at, before, m, next, t, abef, cdgh) \
	FIRST(at, m) \
	TWO(abef, cdgh) \
	NEXT(before, m, next, t) \
	REST(abef, cdgh) \
	SHA256MSG1 m, before

#define G13(at, before, m, next, t, abef, cdgh) \
	FIRST(at, m) \
	TWO(abef, cdgh) \
	NEXT(before, m, next, t) \
	REST(abef, cdgh)

// func two(state *[2][8]uint32, p, q *byte, blocks int)
//
// One stream is in X1 to X6 and X13, the other in X7 to X12 and X14: the instructions of one wait for
// each other, and those of the other are done meanwhile.
TEXT ·two(SB), NOSPLIT, $64-32
	MOVQ state+0(FP), DX
	MOVQ p+8(FP), SI
	MOVQ q+16(FP), DI
	MOVQ blocks+24(FP), CX
	LEAQ rounds<>(SB), AX
	MOVOU turn<>(SB), X15
	MOVOU 0(DX), X1
	MOVOU 16(DX), X2
	MOVOU 32(DX), X7
	MOVOU 48(DX), X8

next:
	TESTQ CX, CX
	JLE done
	MOVOU X1, 0(SP)
	MOVOU X2, 16(SP)
	MOVOU X7, 32(SP)
	MOVOU X8, 48(SP)
	LOAD(0, SI, X3)
	LOAD(0, DI, X9)
	LOAD(16, SI, X4)
	LOAD(16, DI, X10)
	LOAD(32, SI, X5)
	LOAD(32, DI, X11)
	LOAD(48, SI, X6)
	LOAD(48, DI, X12)
	G0(0, X3, X1, X2)
	G0(0, X9, X7, X8)
	G1(16, X3, X4, X1, X2)
	G1(16, X9, X10, X7, X8)
	G1(32, X4, X5, X1, X2)
	G1(32, X10, X11, X7, X8)
	G3(48, X5, X6, X3, X13, X1, X2)
	G3(48, X11, X12, X9, X14, X7, X8)
	G3(64, X6, X3, X4, X13, X1, X2)
	G3(64, X12, X9, X10, X14, X7, X8)
	G3(80, X3, X4, X5, X13, X1, X2)
	G3(80, X9, X10, X11, X14, X7, X8)
	G3(96, X4, X5, X6, X13, X1, X2)
	G3(96, X10, X11, X12, X14, X7, X8)
	G3(112, X5, X6, X3, X13, X1, X2)
	G3(112, X11, X12, X9, X14, X7, X8)
	G3(128, X6, X3, X4, X13, X1, X2)
	G3(128, X12, X9, X10, X14, X7, X8)
	G3(144, X3, X4, X5, X13, X1, X2)
	G3(144, X9, X10, X11, X14, X7, X8)
	G3(160, X4, X5, X6, X13, X1, X2)
	G3(160, X10, X11, X12, X14, X7, X8)
	G3(176, X5, X6, X3, X13, X1, X2)
	G3(176, X11, X12, X9, X14, X7, X8)
	G3(192, X6, X3, X4, X13, X1, X2)
	G3(192, X12, X9, X10, X14, X7, X8)
	G13(208, X3, X4, X5, X13, X1, X2)
	G13(208, X9, X10, X11, X14, X7, X8)
	G13(224, X4, X5, X6, X13, X1, X2)
	G13(224, X10, X11, X12, X14, X7, X8)
	G0(240, X6, X1, X2)
	G0(240, X12, X7, X8)
	MOVOU 0(SP), X3
	PADDD X3, X1
	MOVOU 16(SP), X4
	PADDD X4, X2
	MOVOU 32(SP), X9
	PADDD X9, X7
	MOVOU 48(SP), X10
	PADDD X10, X8
	ADDQ $64, SI
	ADDQ $64, DI
	DECQ CX
	JMP next

done:
	MOVOU X1, 0(DX)
	MOVOU X2, 16(DX)
	MOVOU X7, 32(DX)
	MOVOU X8, 48(DX)
	RET
