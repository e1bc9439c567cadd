package journal

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// The file is an 16-byte head ("portcullis-jrnl" and a version byte) and frames:
//
//	0  4   length of the payload, little endian, 1..MaxPayload
//	4  8   sequence number, little endian, from 1
//	12 32  SHA-256 of (hash of the record before ‖ bytes 0..11 ‖ payload)
//	44 4   CRC-32C of bytes 0..43
//	48 4   CRC-32C of the payload
//	52     payload
//
// The checksums tell a torn write from a changed record: the first is normal
// after a crash and only ever the last thing in the file. The hash is what
// nobody can recompute in one record without changing all later ones.
const (
	headSize  = 16
	frameSize = 52

	// MaxPayload is the largest record in bytes.
	MaxPayload = 64 << 10
)

// Hash is a SHA-256.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// genesis is the hash before the first record.
var genesis = Hash(sha256.Sum256([]byte("portcullis-journal-v1")))

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// BrokenError is a file whose chain does not hold: Seq is the first record
// that is wrong. It is never the sign of a crash.
type BrokenError struct {
	Seq    uint64
	Offset int64
	Detail string
}

func (e *BrokenError) Error() string {
	return fmt.Sprintf("journal-broken: record %d at byte %d: %s", e.Seq, e.Offset, e.Detail)
}

func fileHead() []byte { return []byte("portcullis-jrnl\x01") }

func encode(before Hash, seq uint64, payload []byte) ([]byte, Hash) {
	frame := make([]byte, frameSize, frameSize+len(payload))
	binary.LittleEndian.PutUint32(frame[0:], uint32(len(payload)))
	binary.LittleEndian.PutUint64(frame[4:], seq)
	hash := chain(before, frame[:12], payload)
	copy(frame[12:], hash[:])
	binary.LittleEndian.PutUint32(frame[44:], crc32.Checksum(frame[:44], castagnoli))
	binary.LittleEndian.PutUint32(frame[48:], crc32.Checksum(payload, castagnoli))
	return append(frame, payload...), hash
}

func chain(before Hash, head, payload []byte) Hash {
	h := sha256.New()
	h.Write(before[:])
	h.Write(head)
	h.Write(payload)
	return Hash(h.Sum(nil))
}

// errTorn marks bytes at the end that a crash can leave.
var errTorn = errors.New("torn")

// Read reads a journal from its beginning. A torn tail is reported, a broken
// record is a *BrokenError; errors of each end it too.
func Read(r io.Reader, each func(Record) error) (Report, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head := make([]byte, headSize)
	n, err := io.ReadFull(in, head)
	switch {
	case err == nil && bytes.Equal(head, fileHead()):
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		if !bytes.HasPrefix(fileHead(), bytes.TrimRight(head[:n], "\x00")) {
			return Report{}, &BrokenError{Detail: "this file is no journal"}
		}
		return Report{Head: genesis, TornTail: int64(n)}, nil
	case err != nil:
		return Report{}, err
	default:
		return Report{}, &BrokenError{Detail: "this file is no journal, or of a version that is not known"}
	}
	rep := Report{Head: genesis, Valid: headSize}
	var buf []byte
	for {
		seq := rep.Records + 1
		frame, err := next(in, &buf, rep.Head, seq, rep.Valid)
		var torn *tornError
		switch {
		case errors.Is(err, io.EOF):
			return rep, nil
		case errors.As(err, &torn):
			rep.TornTail = torn.bytes
			return rep, nil
		case err != nil:
			return rep, err
		}
		hash := Hash(frame[12:44])
		if each != nil {
			if err := each(Record{Seq: seq, Offset: rep.Valid, Payload: frame[frameSize:], Hash: hash}); err != nil {
				return rep, fmt.Errorf("record %d: %w", seq, err)
			}
		}
		rep.Records, rep.Head, rep.Valid = seq, hash, rep.Valid+int64(len(frame))
	}
}

type tornError struct{ bytes int64 }

func (e *tornError) Error() string { return fmt.Sprintf("%d bytes of a %v record", e.bytes, errTorn) }

// next reads one frame; io.EOF is the clean end.
func next(in *bufio.Reader, buf *[]byte, before Hash, seq uint64, offset int64) ([]byte, error) {
	*buf = grow(*buf, frameSize)
	n, err := io.ReadFull(in, *buf)
	if errors.Is(err, io.EOF) {
		return nil, io.EOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &tornError{int64(n)}
	}
	if err != nil {
		return nil, err
	}
	broken := func(format string, args ...any) error {
		return &BrokenError{Seq: seq, Offset: offset, Detail: fmt.Sprintf(format, args...)}
	}
	if crc32.Checksum((*buf)[:44], castagnoli) != binary.LittleEndian.Uint32((*buf)[44:]) {
		return nil, tornOr(in, int64(n), broken("its head is damaged"))
	}
	length := binary.LittleEndian.Uint32(*buf)
	if length == 0 || length > MaxPayload {
		return nil, broken("length %d is impossible", length)
	}
	*buf = grow(*buf, frameSize+int(length))
	m, err := io.ReadFull(in, (*buf)[frameSize:])
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, &tornError{int64(n + m)}
	}
	if err != nil {
		return nil, err
	}
	frame := *buf
	if crc32.Checksum(frame[frameSize:], castagnoli) != binary.LittleEndian.Uint32(frame[48:]) {
		return nil, tornOr(in, int64(len(frame)), broken("its payload is damaged"))
	}
	if got := binary.LittleEndian.Uint64(frame[4:]); got != seq {
		return nil, broken("it has number %d", got)
	}
	if chain(before, frame[:12], frame[frameSize:]) != Hash(frame[12:44]) {
		return nil, broken("its hash does not continue the chain")
	}
	return frame, nil
}

// tornOr decides about a damaged record: a crash leaves it as the last thing
// in the file, followed by nothing or by zeros that were never written.
func tornOr(in *bufio.Reader, read int64, broken error) error {
	for {
		b, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			return &tornError{read}
		}
		if err != nil {
			return err
		}
		if b != 0 {
			return broken
		}
		read++
	}
}

func grow(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	grown := make([]byte, n)
	copy(grown, b)
	return grown
}
