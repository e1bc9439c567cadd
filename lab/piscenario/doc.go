// Package piscenario holds what the project claims about the Pi's card, each as a
// test that boots the built image in QEMU with a TPM: first and second boot,
// recovery, a cloned card, edited boot files, updates, power cuts. It has no code
// of its own but the tests.
//
// A test takes a card, changes it or its chip where it plays an attack, boots it
// and looks at the console:
//
//	func TestPrimaryHeaderDestroyed(t *testing.T) {
//		p := provisioned(t)             // a card after its first boot, made once and cached
//		c := cardOf(t, p.Card)          // its own copy
//		m := boot(t, c)                 // killed at the end
//		expect(t, m, `stage=unlock .*by=tpm2`)
//	}
//
// fresh(t, variant) is a card as flashed, with a new chip. image(t, variant)
// builds other images: a release profile, a higher sequence with its update
// bundle. goesOn(t) is a copy of a Pi in which everything has started: a test that says
// nothing of its own about the boot saves itself one, and reads on the console what that
// boot has said. power(t, c) boots from a disk that loses what was not flushed when the
// power is cut, and suspend and resume let many cuts begin with one boot. The tests run
// two at a time: a boot leaves one of two cores idle for most of its time. The PC and its
// Pi run alone, before the others.
package piscenario
