# Mail::DKIM as a verifier. mail_dkim.pl dkim|arc ZONE < MESSAGE
# ZONE: a file in place of DNS, each line a name, a tab and the text of its TXT record.
# Prints a line for each signature: domain, selector, algorithm, result; with "arc" one line with the chain's result.
use strict;
use warnings;
use Mail::DKIM::ARC::Verifier;
use Mail::DKIM::Verifier;
use Net::DNS;

my ($kind, $zone) = @ARGV;
my %records;
open my $file, '<', $zone or die $!;
while (my $line = <$file>) {
    chomp $line;
    my ($name, $text) = split /\t/, $line, 2;
    $records{lc $name} = $text;
}
{
    no warnings 'redefine';
    *Mail::DKIM::DNS::query = sub {
        my $text = $records{lc $_[0]};
        if (!defined $text) { $@ = 'NXDOMAIN'; return; }
        my @strings = $text =~ /(.{1,255})/gs;
        return Net::DNS::RR->new(name => $_[0], type => 'TXT', txtdata => \@strings);
    };
}
binmode STDIN;
my $message = do { local $/; <STDIN> };
my $verifier = $kind eq 'arc' ? Mail::DKIM::ARC::Verifier->new() : Mail::DKIM::Verifier->new();
$verifier->PRINT($message);
$verifier->CLOSE;
if ($kind eq 'arc') {
    print $verifier->result, "\n";
} else {
    print join(' ', $_->domain, $_->selector, $_->algorithm, $_->result), "\n" for $verifier->signatures;
}
