package expect_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"portcullis/attestserver/eventlog"
	"portcullis/attestserver/eventlog/eventlogtest"
	"portcullis/attestserver/protocol"
	"portcullis/hardware/tpmattest"
	"portcullis/images/manifest"
)

// softChip is a PC's TPM in software, as quick as signing is: a rack of them leaves the
// processors to who judges. It answers op tpm as probe.Tpm does with a chip, opens the
// credential, and its machine has IMA measure one more file before each quote.
type softChip struct {
	ek     *ecdh.PrivateKey
	ak     *ecdsa.PrivateKey
	public struct{ ek, ak []byte } // TPMT_PUBLIC
	name   []byte                  // of ak
	signer []byte                  // its qualified name
	log    []byte
	made   time.Time

	mu   sync.Mutex
	pcrs map[int]tpmattest.Register
	list []byte // IMA's, from the byte from on: what was asked for before is forgotten
	from int64
	next uint64
}

// newSoftChip is a chip that has booted the image.
func newSoftChip(t testing.TB) *softChip {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := &softChip{made: time.Now(), pcrs: map[int]tpmattest.Register{}}
	var err error
	c.ek, err = ecdh.P256().GenerateKey(rand.Reader)
	must(err)
	c.ak, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template, _, err := tpmattest.EKTemplate(tpmattest.EKECC)
	must(err)
	c.public.ek = tpm2.Marshal(withPoint(template, c.ek.PublicKey().Bytes()))
	point, err := c.ak.PublicKey.Bytes()
	must(err)
	ak := withPoint(tpmattest.AKTemplate(), point)
	c.public.ak = tpm2.Marshal(ak)
	name, err := tpm2.ObjectName(&ak)
	must(err)
	c.name = name.Buffer
	c.signer, err = tpmattest.QualifiedName(&ak)
	must(err)
	c.log = softLog(t)
	log, err := eventlog.Parse(c.log)
	must(err)
	for _, e := range log.Events {
		if e.Type != eventlog.NoAction {
			c.extend(e.PCR, e.Digest)
		}
	}
	return c
}

// softLogEnv names a log that firmware wrote. The image is then the one of that log.
const softLogEnv = "PORTCULLIS_RACK_LOG"

// softLog is what a softChip's firmware has measured.
func softLog(t testing.TB) []byte {
	t.Helper()
	at := os.Getenv(softLogEnv)
	if at == "" {
		return eventlogtest.Encode(eventlogtest.Boot(imageDigest, kernelDigest, nine, eleven)...)
	}
	b, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// softBooted has a manifest predict what a softChip's registers hold.
func softBooted(t testing.TB, m *manifest.Manifest) {
	t.Helper()
	log, err := eventlog.Parse(softLog(t))
	if err != nil {
		t.Fatal(err)
	}
	programs, err := log.Applications()
	if err != nil || len(programs) < 2 {
		t.Fatalf("the log has %d programs: %v", len(programs), err)
	}
	registers, err := log.Replay(9, 11, 12)
	if err != nil {
		t.Fatal(err)
	}
	image, kernel := programs[0], programs[len(programs)-1]
	m.UKI.Authenticode, m.UKI.LinuxAuthenticode = hex.EncodeToString(image[:]), hex.EncodeToString(kernel[:])
	m.PCR = map[string]string{}
	for i, v := range registers {
		m.PCR[strconv.Itoa(i)] = hex.EncodeToString(v[:])
	}
}

// withPoint is the public area of a key made from a template.
func withPoint(p tpm2.TPMTPublic, point []byte) tpm2.TPMTPublic {
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]}})
	return p
}

func (c *softChip) extend(pcr int, d [32]byte) {
	was := c.pcrs[pcr]
	c.pcrs[pcr] = sha256.Sum256(append(was[:], d[:]...))
}

// measure is what IMA does with a new file.
func (c *softChip) measure() {
	c.next++
	digest := sha256.Sum256(binary.LittleEndian.AppendUint64(nil, c.next))
	data := imaFields(append([]byte("sha256:\x00"), digest[:]...), fmt.Appendf(nil, "/usr/bin/program-%d\x00", c.next), nil)
	c.extend(10, sha256.Sum256(data))
	b := append(binary.LittleEndian.AppendUint32(c.list, 10), bytes.Repeat([]byte{1}, 20)...)
	c.list = append(b, imaFields([]byte("ima-sig"), data)...)
}

func imaFields(fields ...[]byte) (b []byte) {
	for _, f := range fields {
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(f))), f...)
	}
	return b
}

// Name implements protocol.Probe.
func (*softChip) Name() string { return protocol.OpTpm }

// Run implements protocol.Probe.
func (c *softChip) Run(_ context.Context, key protocol.OpKey, params []byte) (out protocol.Output, err error) {
	var q protocol.TpmParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &q); err != nil {
		return out, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measure()
	if q.ListFrom < c.from || q.ListFrom > c.from+int64(len(c.list)) {
		return out, fmt.Errorf("the list is asked for from byte %d on, it begins at %d", q.ListFrom, c.from)
	}
	c.list, c.from = bytes.Clone(c.list[q.ListFrom-c.from:]), q.ListFrom
	d := protocol.TpmData{Present: true, List: c.list}
	if d.Quote, err = c.quote(key.Qualifying(params)); err != nil {
		return out, err
	}
	if q.Identify {
		d.EKKind, d.EK, d.AK = string(tpmattest.EKECC), c.public.ek, c.public.ak
	}
	if q.Log {
		d.Log = c.log
	}
	if len(q.Credential) > 0 {
		secret, err := c.activate(q.Credential, q.Secret)
		if err != nil {
			return out, err
		}
		proof := key.Activated(params, secret)
		d.Activated = proof[:]
	}
	if out.Data, err = protocol.EncodeOp(d); err != nil {
		return out, err
	}
	out.Digest = key.Digest(protocol.OpTpm, params, out.Data)
	return out, nil
}

// quote is TPM2_Quote (TPM 2.0 Part 3, 18.4) over all registers.
func (c *softChip) quote(nonce [32]byte) (*protocol.TpmQuote, error) {
	q := new(protocol.TpmQuote)
	composite, selection := sha256.New(), [3]byte{}
	for _, i := range slices.Sorted(slices.Values(protocol.TpmRegisters)) {
		v := c.pcrs[i]
		composite.Write(v[:])
		selection[i/8] |= 1 << (i % 8)
		q.PCRs = append(q.PCRs, protocol.TpmPCR{Index: i, Value: hex.EncodeToString(v[:])})
	}
	sized := func(b, field []byte) []byte {
		return append(binary.BigEndian.AppendUint16(b, uint16(len(field))), field...)
	}
	b := sized(sized([]byte("\xffTCG\x80\x18"), c.signer), nonce[:])
	b = binary.BigEndian.AppendUint64(b, uint64(time.Since(c.made).Milliseconds()))
	b = binary.BigEndian.AppendUint64(b, 1<<32)                   // one reset, no resume
	b = binary.BigEndian.AppendUint64(append(b, 1), 1)            // safe; firmware
	b = append(append(b, 0, 0, 0, 1, 0, 0xb, 3), selection[:]...) // of the SHA-256 bank
	q.Message = sized(b, composite.Sum(nil))
	digest := sha256.Sum256(q.Message)
	var err error
	q.Signature, err = ecdsa.SignASN1(rand.Reader, c.ak, digest[:])
	return q, err
}

// activate is TPM2_ActivateCredential (Part 1, 24): only this chip can, and only for
// this attestation key.
func (c *softChip) activate(credential, encrypted []byte) ([]byte, error) {
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](encrypted)
	if err != nil {
		return nil, err
	}
	x := point.X.Buffer
	ephemeral, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), point.Y.Buffer...))
	if err != nil {
		return nil, err
	}
	z, err := c.ek.ECDH(ephemeral)
	if err != nil {
		return nil, err
	}
	seed := tpm2.KDFe(crypto.SHA256, z, "IDENTITY", x, c.ek.PublicKey().Bytes()[1:33], 256)
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, seed, "STORAGE", c.name, nil, 128))
	if err != nil || len(credential) < 2+32+2 {
		return nil, errors.Join(err, fmt.Errorf("a credential of %d bytes", len(credential)))
	}
	sealed := credential[2+32:] // behind the HMAC; AES-CFB from zeros
	secret, stream := make([]byte, len(sealed)), make([]byte, aes.BlockSize)
	for at := 0; at < len(sealed); at += aes.BlockSize {
		block.Encrypt(stream, stream)
		copy(stream, sealed[at:at+subtle.XORBytes(secret[at:], sealed[at:], stream)])
	}
	return secret[2:], nil
}

// A chip in software enrols and comes back like one of swtpm, with a log of its own too.
func TestSoftChip(t *testing.T) {
	t.Run("written", testSoftChip)
	t.Run("read", func(t *testing.T) {
		other := eventlogtest.Encode(eventlogtest.Boot([32]byte{1}, [32]byte{2}, [][32]byte{{3}}, [][32]byte{{4}})...)
		at := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(at, other, 0o600); err != nil {
			t.Fatal(err)
		}
		t.Setenv(softLogEnv, at)
		if !bytes.Equal(newSoftChip(t).log, other) {
			t.Error("the chip has another log")
		}
		testSoftChip(t)
	})
}

func testSoftChip(t *testing.T) {
	p := &tpmPC{machine: newMachine(t)}
	softBooted(t, p.image.Manifest)
	p.probes[protocol.OpTpm] = newSoftChip(t)
	p.good(protocol.TierSoftware, false)
	p.good(protocol.TierTPM, true)
	for range 3 {
		p.good(protocol.TierTPM, false)
	}
}
