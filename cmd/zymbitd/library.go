package main

import (
	"bytes"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"

	"portcullis/hardware/zymbit"
)

// defaultLibrary is the vendor's library, as its package installs it.
const defaultLibrary = "libzk_app_utils.so"

// library calls the vendor's library, whose interface is zk_app_utils.h: every call
// returns 0 or more for success and a negative errno otherwise, and hands out
// buffers of its own, which the caller frees.
type library struct {
	ctx uintptr

	open           func(ctx *uintptr) int32
	close          func(ctx uintptr) int32
	getRandBytes   func(ctx uintptr, dst *unsafe.Pointer, n int32) int32
	lock           func(ctx uintptr, src unsafe.Pointer, n int32, dst *unsafe.Pointer, dn *int32, shared bool) int32
	unlock         func(ctx uintptr, src unsafe.Pointer, n int32, dst *unsafe.Pointer, dn *int32, shared bool) int32
	sign           func(ctx uintptr, digest unsafe.Pointer, slot int32, sig *unsafe.Pointer, n *int32) int32
	exportPublic   func(ctx uintptr, key *unsafe.Pointer, n *int32, slot int32, foreign bool) int32
	model          func(ctx uintptr, s *unsafe.Pointer) int32
	serial         func(ctx uintptr, s *unsafe.Pointer) int32
	firmware       func(ctx uintptr, s *unsafe.Pointer) int32
	waitPerimeter  func(ctx uintptr, ms uint32) int32
	perimeter      func(ctx uintptr, times *unsafe.Pointer, n *int32) int32
	clearPerimeter func(ctx uintptr) int32
	ledOn          func(ctx uintptr) int32
	ledOff         func(ctx uintptr) int32
	ledFlash       func(ctx uintptr, on, off, times uint32) int32
	free           func(p unsafe.Pointer)
}

var _ zymbit.Library = (*library)(nil)

// load opens the library at path and the module behind it.
func load(path string) (*library, error) {
	h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("%s (the vendor's package zkapputilslib): %w", path, err)
	}
	l := &library{}
	for _, f := range []struct {
		to   any
		name string
	}{
		{&l.open, "zkOpen"}, {&l.close, "zkClose"}, {&l.getRandBytes, "zkGetRandBytes"},
		{&l.lock, "zkLockDataB2B"}, {&l.unlock, "zkUnlockDataB2B"},
		{&l.sign, "zkGenECDSASigFromDigest"}, {&l.exportPublic, "zkExportPubKey"},
		{&l.model, "zkGetModelNumberString"}, {&l.serial, "zkGetSerialNumberString"}, {&l.firmware, "zkGetFirmwareVersionString"},
		{&l.waitPerimeter, "zkWaitForPerimeterEvent"}, {&l.perimeter, "zkGetPerimeterDetectInfo"}, {&l.clearPerimeter, "zkClearPerimeterDetectEvents"},
		{&l.ledOn, "zkLEDOn"}, {&l.ledOff, "zkLEDOff"}, {&l.ledFlash, "zkLEDFlash"},
		// The C library's: a symbol of the vendor's dependencies.
		{&l.free, "free"},
	} {
		address, err := purego.Dlsym(h, f.name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		purego.RegisterFunc(f.to, address)
	}
	if err := code("zkOpen", l.open(&l.ctx)); err != nil {
		return nil, err
	}
	return l, nil
}

// callError is a negative return code.
type callError struct {
	name string
	code int32
}

func (e *callError) Error() string {
	return fmt.Sprintf("%s: %v", e.name, unix.Errno(-e.code))
}

func code(name string, n int32) error {
	if n < 0 {
		return &callError{name, n}
	}
	return nil
}

// maxBuffer caps what the library may hand out, in bytes.
const maxBuffer = 4096

// take copies a buffer of the library's, wipes it and frees it.
func (l *library) take(name string, p unsafe.Pointer, n int32) ([]byte, error) {
	if p == nil {
		return nil, fmt.Errorf("%s: no buffer", name)
	}
	defer l.free(p)
	if n < 0 || n > maxBuffer {
		return nil, fmt.Errorf("%s: a buffer of %d bytes", name, n)
	}
	theirs := unsafe.Slice((*byte)(p), n)
	out := bytes.Clone(theirs)
	clear(theirs)
	return out, nil
}

func (l *library) Random(n int) ([]byte, error) {
	var p unsafe.Pointer
	if err := code("zkGetRandBytes", l.getRandBytes(l.ctx, &p, int32(n))); err != nil {
		return nil, err
	}
	return l.take("zkGetRandBytes", p, int32(n))
}

func (l *library) Lock(b []byte) ([]byte, error) { return l.convert("zkLockDataB2B", l.lock, b) }

func (l *library) Unlock(b []byte) ([]byte, error) { return l.convert("zkUnlockDataB2B", l.unlock, b) }

// convert uses the module's one-way key (shared false): the other one is for exporting
// to the vendor's cloud.
func (l *library) convert(name string, f func(uintptr, unsafe.Pointer, int32, *unsafe.Pointer, *int32, bool) int32, b []byte) ([]byte, error) {
	if len(b) == 0 || len(b) > maxBuffer {
		return nil, fmt.Errorf("%s: %d bytes", name, len(b))
	}
	var p unsafe.Pointer
	var n int32
	if err := code(name, f(l.ctx, unsafe.Pointer(&b[0]), int32(len(b)), &p, &n, false)); err != nil {
		return nil, err
	}
	return l.take(name, p, n)
}

func (l *library) SignDigest(digest [32]byte, slot int) ([]byte, error) {
	var p unsafe.Pointer
	var n int32
	if err := code("zkGenECDSASigFromDigest", l.sign(l.ctx, unsafe.Pointer(&digest[0]), int32(slot), &p, &n)); err != nil {
		return nil, err
	}
	return l.take("zkGenECDSASigFromDigest", p, n)
}

func (l *library) PublicKey(slot int) ([]byte, error) {
	var p unsafe.Pointer
	var n int32
	if err := code("zkExportPubKey", l.exportPublic(l.ctx, &p, &n, int32(slot), false)); err != nil {
		return nil, err
	}
	return l.take("zkExportPubKey", p, n)
}

func (l *library) Model() (string, error)    { return l.text("zkGetModelNumberString", l.model) }
func (l *library) Serial() (string, error)   { return l.text("zkGetSerialNumberString", l.serial) }
func (l *library) Firmware() (string, error) { return l.text("zkGetFirmwareVersionString", l.firmware) }

// maxText caps a string of the library's, in bytes.
const maxText = 128

func (l *library) text(name string, f func(uintptr, *unsafe.Pointer) int32) (string, error) {
	var p unsafe.Pointer
	if err := code(name, f(l.ctx, &p)); err != nil {
		return "", err
	}
	if p == nil {
		return "", fmt.Errorf("%s: no buffer", name)
	}
	defer l.free(p)
	for n := range maxText {
		if *(*byte)(unsafe.Add(p, n)) == 0 {
			return string(unsafe.Slice((*byte)(p), n)), nil
		}
	}
	return "", fmt.Errorf("%s: more than %d characters", name, maxText)
}

func (l *library) WaitPerimeter(d time.Duration) (bool, error) {
	err := code("zkWaitForPerimeterEvent", l.waitPerimeter(l.ctx, uint32(d.Milliseconds())))
	var e *callError
	if errors.As(err, &e) && unix.Errno(-e.code) == unix.ETIMEDOUT {
		return false, nil
	}
	return err == nil, err
}

func (l *library) Perimeter() ([]uint32, error) {
	var p unsafe.Pointer
	var n int32
	if err := code("zkGetPerimeterDetectInfo", l.perimeter(l.ctx, &p, &n)); err != nil {
		return nil, err
	}
	if p == nil {
		return nil, errors.New("zkGetPerimeterDetectInfo: no buffer")
	}
	defer l.free(p)
	if n < 0 || n > 64 {
		return nil, fmt.Errorf("zkGetPerimeterDetectInfo: %d channels", n)
	}
	return append([]uint32(nil), unsafe.Slice((*uint32)(p), n)...), nil
}

func (l *library) ClearPerimeter() error {
	return code("zkClearPerimeterDetectEvents", l.clearPerimeter(l.ctx))
}

func (l *library) LEDOn() error  { return code("zkLEDOn", l.ledOn(l.ctx)) }
func (l *library) LEDOff() error { return code("zkLEDOff", l.ledOff(l.ctx)) }

func (l *library) LEDFlash(on, off time.Duration, times uint32) error {
	return code("zkLEDFlash", l.ledFlash(l.ctx, uint32(on.Milliseconds()), uint32(off.Milliseconds()), times))
}

func (l *library) Close() error { return code("zkClose", l.close(l.ctx)) }
